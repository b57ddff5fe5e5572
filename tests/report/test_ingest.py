import io
from collections import Counter

from rich.console import Console

from rdmldg_ray.report.ingest import class_notes, ingest_table, repetition_notes


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
    assert class_notes(1, {}) == ["note: 1 class, so that any answer is right"]
    assert class_notes(3, {"photo": ["cat", "dog"]})[1:] == ["note: photo has no image of cat, dog"]


def test_images_that_occur_again_are_noted():
    assert repetition_notes({"domains": 0, "labels": 0, "all": 0}, questions=False) == []
    assert repetition_notes({"domains": 1, "labels": 2, "all": 3}, questions=False) == [
        "note: 1 image occurs in more than one domain; what is held out is then trained on too",
        "note: 2 images occur under more than one class; one of them is wrong",
        "note: 3 images occur more than once; copies may lie in both splits of a domain",
    ]
    assert len(repetition_notes({"domains": 1, "labels": 2, "all": 3}, questions=True)) == 1
