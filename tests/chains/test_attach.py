import pyarrow as pa
import pytest

from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.chains.format import SECTIONS, render_chain

SAMPLES = pa.table({"id": ["a", "b", "c"], "label": ["cat", "dog", "dog"]})


def chain(text):
    return render_chain(dict.fromkeys(SECTIONS, text))


def chains(*rows):
    columns = ("id", "candidate", "text", "accepted")
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])


def attached(table):
    joined = attach_chains(SAMPLES, table, "s3://bucket/chains")
    return list(zip(joined["id"].to_pylist(), joined["chain"].to_pylist(), strict=True))


def test_a_sample_without_an_accepted_chain_takes_no_part():
    table = chains(
        ("c", 0, chain("c"), True),
        ("a", 0, chain("a"), True),
        ("b", 0, "x", False),
    )
    assert attached(table) == [("a", chain("a")), ("c", chain("c"))]


def test_of_several_accepted_chains_the_first_candidate_is_taken():
    table = chains(("a", 2, chain("third"), True), ("a", 1, chain("second"), True), ("a", 0, "x", False))
    assert attached(table) == [("a", chain("second"))]


def test_chains_of_other_samples_bring_none_in():
    table = chains(("z", 0, chain("z"), True), ("b", 0, chain("b"), True))
    assert attached(table) == [("b", chain("b"))]


@pytest.mark.parametrize(("id", "accepted"), [("a", False), ("z", True)])
def test_no_accepted_chain_at_all_names_the_location(id, accepted):
    with pytest.raises(
        ValueError, match="s3://bucket/chains: no sample of the source domains has an accepted"
    ):
        attached(chains((id, 0, chain("x"), accepted)))


def test_where_none_is_needed_no_accepted_chain_leaves_no_sample():
    joined = attach_chains(SAMPLES, chains(("z", 0, chain("z"), True)), "there", may_be_none=True)
    assert joined.column_names == ["id", "label", "chain"]
    assert len(joined) == 0


def test_a_chain_without_a_conclusion_is_named_with_its_row_and_the_remedy():
    broken = chain("x").split("<CONCLUSION>")[0]
    with pytest.raises(ValueError, match=r"s3://bucket/chains: row b: the chain has no <CONCLUSION>; mend"):
        attached(chains(("b", 0, broken, True)))


@pytest.mark.parametrize(("lost", "told"), [("dog", True), ("cat", True), ("", False)])
def test_classes_that_are_left_with_fewer_images_are_told(lost, told, caplog):
    labels = ["cat", "dog", "rat"] * 20
    samples = pa.table({"id": [str(number) for number in range(60)], "label": labels})
    rows = [(str(number), 0, chain("x"), label != lost) for number, label in enumerate(labels)]
    joined = attach_chains(samples, chains(*rows), f"here, without {lost}")
    assert len(joined) == (40 if told else 60)
    words = (
        f"without {lost}: classes lose images unequally: without an accepted chain are 20 of 20 of '{lost}'"
    )
    assert (words in caplog.text) == told == bool(caplog.records)


@pytest.mark.parametrize("mark", ["<image>", "<|im_end|>", "<IMG_CONTEXT>"])
def test_a_chain_with_a_models_own_mark_is_named_before_a_training_meets_it(mark):
    with pytest.raises(
        ValueError, match=r"row b: the chain holds .*, which a model does not read as text; mend"
    ):
        attached(chains(("b", 0, chain(f"an {mark} of it"), True)))
