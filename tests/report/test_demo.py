import pyarrow as pa
import pytest

from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.report.demo import choose_chains, print_demo_end
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.runtime.console import plain_console


def prediction(number, label, correct, pathway="reasoning", held_out=True):
    return {
        "id": f"flat/{label}/{number}.png",
        "domain": "flat" if held_out else "paint",
        "split": "out" if number == 9 else "in",
        "held_out": held_out,
        "pathway": pathway,
        "label": label,
        "prediction": label if correct else "cup",
        "correct": correct,
        "text": f"chain {number}",
    }


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (
            [(1, "bird", True), (2, "bird", True), (3, "cat", True), (4, "cat", False), (5, "dog", True)],
            [1, 3, 4],
        ),
        ([(1, "bird", False), (2, "bird", True), (3, "cat", False)], [2, 1]),
        ([(1, "bird", True)], [1]),
        ([(1, "bird", False)], [1]),
        ([], []),
    ],
)
def test_chains_of_two_classes_and_one_that_is_wrong_are_shown(given, chosen):
    rows = [prediction(*one) for one in given]
    assert [row["text"] for row in choose_chains(rows)] == [f"chain {number}" for number in chosen]


class Results:
    """What a finished run tells of its evaluation."""

    held_out = ("flat",)
    store = RunStore("root", "demo")
    files = (store.predictions_uri("flat", "mtct"),)

    def models(self, held_out):
        return ["zero-shot", "mtct"]

    def accuracy(self, held_out, model):
        return {"direct": {"target_in": 0.75}, "reasoning": {"target_in": 0.5}}

    def predictions(self, held_out, model):
        rows = [
            prediction(n, "bird", n < 4, pathway) for n in range(1, 5) for pathway in ("direct", "reasoning")
        ]
        rows += [prediction(9, "cat", True, "direct"), prediction(5, "cat", True, "direct", held_out=False)]
        return pa.Table.from_pylist(rows, PREDICTION_SCHEMA)


def test_the_words_below_the_table_are_of_its_numbers():
    console = plain_console(width=400)
    with console.capture() as capture:
        print_demo_end(console, Results())
    shown = capture.get()
    assert "target (in) counts 4 images" in shown
    assert "Chance is 50.0 %. 75.0 % has a standard error of 21.7 points." in shown
    assert "flat/bird/1.png: right, it is bird" in shown and "flat/bird/4.png: wrong, it is bird" in shown
