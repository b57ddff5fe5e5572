import pyarrow as pa
from rich.console import Console

from rdmldg_ray.report.rejections import rejection_table, round_line, shares_line
from rdmldg_ray.sarr.selection import REJECTION_SCHEMA


def rejections(*rows):
    return pa.Table.from_pylist(
        [dict(zip(REJECTION_SCHEMA.names, row, strict=True)) for row in rows], schema=REJECTION_SCHEMA
    )


def printed(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


TABLE = rejections(
    ("art", "cat", None, 6),
    ("art", "dog", "wrong_class", 2),
    ("photo", "cat", "wrong_class", 1),
    ("photo", "cat", "missing_section", 1),
    ("photo", "dog", None, 1),
)


def test_the_domain_with_the_smallest_share_accepted_comes_first():
    lines = printed(rejection_table(TABLE, "domain", "x")).splitlines()
    cells = [line.replace("│", " ").split() for line in lines]
    assert ["photo", "3", "33.3", "1", "1"] in cells
    assert ["art", "8", "75.0", "2"] in cells
    assert cells.index(["photo", "3", "33.3", "1", "1"]) < cells.index(["art", "8", "75.0", "2"])


def test_of_many_classes_those_with_most_rejections_are_shown_and_the_rest_counted():
    many = rejections(*[("art", f"class {i:02}", None if i < 5 else "wrong_class", 1) for i in range(25)])
    text = printed(rejection_table(many, "label", "x"))
    assert "class 05" in text and "class 04" not in text
    assert "and 5 more, with a larger share accepted" in text


def summary(**changes):
    known = {"images": 4, "images_with_chain": 2, "candidates": 8, "accepted": 3, "tokens_per_selected": 45.5}
    return known | {"draws_left": 0} | changes


def test_a_rounds_line_tells_what_a_chain_cost():
    assert round_line(summary()) == (
        "2 of 4 images have a chain, 45.5 tokens for each; 3 of 8 candidates pass the filter"
    )
    assert "0 of 4 images have a chain; 0 of 8" in round_line(
        summary(images_with_chain=0, accepted=0, tokens_per_selected=None)
    )


def test_a_rounds_line_tells_of_images_that_were_not_drawn_to_the_end():
    line = round_line(summary(draws_left=2))
    assert line.endswith("8 candidates pass the filter; 2 images without one have draws left")


def test_shares_are_told_round_by_round():
    state = {
        "art/mtct": {},
        "art/sarr-1/candidates": summary(),
        "art/sarr-1": {},
        "art/sarr-2/candidates": summary(accepted=6),
        "photo/sarr-1/candidates": summary(accepted=8),
    }
    assert shares_line(state, "art") == "share accepted by round, 1: 37.5 %, 2: 75.0 %"


def test_a_round_of_nothing_is_a_table_without_rows():
    assert "none were drawn" in printed(rejection_table(rejections(), "label", "x"))
