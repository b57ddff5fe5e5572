import io
from collections import Counter

from rich.console import Console

from rdmldg_ray.report.ingest import class_notes, ingest_table


def printed(table):
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_counts_stand_beside_the_literatures():
    rejected = Counter(["photo", "photo", None])
    rows = printed(ingest_table("PACS", {"photo": 8, "sketch": 5}, rejected, {"photo": 10, "sketch": 5}, 15))
    assert ["photo", "8", "2", "10"] in rows
    assert ["sketch", "5", "0", "5"] in rows
    assert ["all", "13", "3", "15"] in rows


def test_what_the_literature_does_not_tell_is_a_dash():
    rows = printed(ingest_table("pets", {"photo": 8}, {}, {}, None))
    assert ["photo", "8", "0", "-"] in rows
    assert ["all", "8", "0", "-"] in rows


def test_classes_that_are_missing_somewhere_are_noted():
    assert class_notes(3, {}) == ["3 classes"]
    assert class_notes(3, {"photo": ["cat", "dog"]})[1:] == ["note: photo has no image of cat, dog"]
