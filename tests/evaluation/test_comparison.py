import math

import pyarrow as pa
import pytest

from rdmldg_ray.evaluation.comparison import compare


def answers(**correct):
    return pa.table({"id": list(correct), "correct": [bool(value) for value in correct.values()]})


def test_the_difference_is_of_pairs_and_its_error_over_images():
    ours, theirs = answers(a=1, b=1, c=0, d=1), answers(d=0, c=0, b=1, a=0)
    found = compare({"flat": [ours]}, {"flat": [theirs]})
    # 1, 0, 0, 1: mean 1/2, variance 1/3.
    assert (found.difference, found.images) == (0.5, 4)
    assert found.error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert found.p == pytest.approx(math.erfc(0.5 / found.error / math.sqrt(2)))
    back = compare({"flat": [theirs]}, {"flat": [ours]})
    assert (back.difference, back.p) == (-0.5, found.p)


def test_domains_count_alike_and_trials_of_an_image_as_one():
    ours = {"flat": [answers(a=1, b=0), answers(a=1, c=0)], "art": [answers(x=1, y=1, z=1)]}
    theirs = {"flat": [answers(a=0, b=0), answers(a=1, c=0)], "art": [answers(x=1, y=1, z=0)]}
    found = compare(ours, theirs)
    assert found.images == 6
    # Of flat 1/2, 0 and 0, of art 0, 0 and 1.
    assert found.difference == pytest.approx((0.5 / 3 + 1 / 3) / 2)
    variances = [(1 / 12) / 3, (1 / 3) / 3]
    assert found.error == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_equal_models_do_not_differ():
    found = compare({"flat": [answers(a=1, b=0)]}, {"flat": [answers(a=1, b=0)]})
    assert (found.difference, found.error, found.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [(answers(a=1, c=1), "flat: .*not asked about the same"), (answers(a=1), "not asked about the same")],
)
def test_other_images_are_refused(theirs, message):
    with pytest.raises(ValueError, match=message):
        compare({"flat": [answers(a=1, b=1)]}, {"flat": [theirs]})


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="art: 1 images are too few"):
        compare({"art": [answers(a=1)]}, {"art": [answers(a=0)]})
