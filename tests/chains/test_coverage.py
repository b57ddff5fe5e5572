import pytest

from rdmldg_ray.chains.coverage import uneven_classes


def images(**classes):
    """By label, (without a chain, of)."""
    return [
        (label, number >= without) for label, (without, total) in classes.items() for number in range(total)
    ]


@pytest.mark.parametrize(
    "classes",
    [
        {"a": (0, 10)},
        {"a": (10, 10)},
        {"a": (0, 30), "b": (0, 30)},
        {"a": (30, 30), "b": (30, 30)},
        {"a": (9, 30), "b": (12, 30), "c": (10, 30)},
        {"a": (2, 2), "b": (0, 50)},
        {"a": (0, 0), "b": (5, 5)},
    ],
)
def test_classes_that_lose_alike_are_not_told(classes):
    assert uneven_classes(images(**classes)) is None


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"a": (0, 30), "person": (12, 30)}, "are 12 of 30 of 'person', and 0 of 30 of the other classes"),
        ({"a": (2, 300), "person": (135, 135)}, "135 of 135 of 'person', and 2 of 300 of"),
        ({"a": (60, 100), "b": (60, 100), "c": (100, 100)}, "100 of 100 of 'c', and 120 of 200 of"),
        (
            {"a": (0, 100), "b": (0, 100), "c": (20, 20), "d": (30, 30)},
            "30 of 30 of 'd', 20 of 20 of 'c', and 0 of 200",
        ),
    ],
)
def test_classes_that_lose_more_are_counted(classes, words):
    assert words in uneven_classes(images(**classes))


def test_of_many_classes_the_first_are_named():
    lost = {f"lost{number}": (20, 20) for number in range(12)}
    kept = {f"kept{number}": (0, 20) for number in range(60)}
    assert "(and so of 2 more), and 0 of 1200 of" in uneven_classes(images(**lost, **kept))
