import pyarrow as pa
import pytest

from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.evaluation.questions import by_question

SAMPLES = pa.table(
    {
        "id": ["1", "2", "3", "4", "5", "6"],
        "question": ["Day?"] * 4 + ["Where?"] * 2,
        "options": [["yes", "no"]] * 4 + [["up", "down", "left", "right"], ["up", "down"]],
    }
)
LABELS = ("yes", "yes", "yes", "no", "up", "down")


def test_accuracy_stands_beside_chance_and_the_commonest_answer():
    rows = [
        {"id": SAMPLES["id"][n].as_py(), "pathway": pathway, "held_out": n != 0, "label": LABELS[n]}
        | {"correct": mark == "1"}
        for pathway, marks in (("direct", "011010"), ("reasoning", "100011"))
        for n, mark in enumerate(marks)
    ]
    found = by_question(pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA), SAMPLES)
    names = ("question", "pathway", "rows", "accuracy", "chance", "commonest")
    assert [tuple(row[name] for name in names) for row in found] == [
        # The first is a source's, and not counted.
        ("Day?", "direct", 3, pytest.approx(2 / 3), 0.5, pytest.approx(2 / 3)),
        ("Day?", "reasoning", 3, 0.0, 0.5, pytest.approx(2 / 3)),
        ("Where?", "direct", 2, 0.5, 0.375, 0.5),
        ("Where?", "reasoning", 2, 1.0, 0.375, 0.5),
    ]
    assert found[2]["error"] == pytest.approx((0.25 / 2) ** 0.5)
