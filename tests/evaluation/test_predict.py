import pyarrow as pa
import pytest

from rdmldg_ray.engines.engine import ANSWER_SCHEMA
from rdmldg_ray.evaluation.predict import score_answers
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA, accuracies

CLASSES = ["dog", "dog_house", "sea_animal"]


def predictions(*groups):
    """From (pathway, domain, part, held out, marks): one prediction for each mark, 1 for right."""
    rows = [
        {
            "id": f"{domain}/{part}/{number}",
            "domain": domain,
            "split": part,
            "held_out": held_out,
            "pathway": pathway,
            "correct": mark == "1",
        }
        for pathway, domain, part, held_out, marks in groups
        for number, mark in enumerate(marks)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def test_accuracies_are_those_counted_by_hand():
    table = predictions(
        ("direct", "t", "in", True, "11101110"),
        ("direct", "t", "out", True, "10"),
        ("direct", "a", "out", False, "1111"),
        ("direct", "b", "out", False, "0100000000"),
        ("reasoning", "t", "in", True, "00000001"),
        ("reasoning", "t", "out", True, "11"),
        ("reasoning", "a", "out", False, "0000"),
        ("reasoning", "b", "out", False, "1111100000"),
    )
    result = accuracies(table)
    assert list(result) == ["direct", "reasoning"]
    assert result["direct"] == {
        "target_in": pytest.approx(6 / 8),
        "target_out": pytest.approx(1 / 2),
        "target_all": pytest.approx(7 / 10),
        # The mean over domains, not over their images: 5 of 14 would be 0.357.
        "validation": pytest.approx((1 + 0.1) / 2),
    }
    assert result["reasoning"] == {
        "target_in": pytest.approx(1 / 8),
        "target_out": 1.0,
        "target_all": pytest.approx(3 / 10),
        "validation": pytest.approx(0.25),
    }


def test_one_pathway_alone_is_reported_alone():
    table = predictions(
        ("direct", "t", "in", True, "1"),
        ("direct", "t", "out", True, "1"),
        ("direct", "a", "out", False, "0"),
    )
    assert list(accuracies(table)) == ["direct"]


SAMPLES = pa.table(
    {
        "id": ["t/1", "t/2", "a/1"],
        "domain": ["t", "t", "a"],
        "split": ["in", "out", "out"],
        "held_out": [True, True, False],
        "label": ["dog", "sea_animal", "dog_house"],
    }
)


def score(pathway, texts, samples=SAMPLES):
    answers = pa.table(
        {
            "id": list(texts),
            "candidate": [0] * len(texts),
            "text": list(texts.values()),
            "num_tokens": [3] * len(texts),
            "logprob": [-1.0] * len(texts),
            "finished": [True] * len(texts),
            "label_logprob": [None] * len(texts),
            "error": [None] * len(texts),
        },
        schema=ANSWER_SCHEMA,
    )
    table = score_answers(answers, samples, CLASSES, pathway)
    assert table.schema.equals(PREDICTION_SCHEMA)
    return {row["id"]: row for row in table.to_pylist()}


def test_a_direct_answer_names_its_class_by_its_whole_text():
    rows = score("direct", {"a/1": "dog", "t/2": "sea animal", "t/1": "a dog"})
    assert {i: (r["prediction"], r["correct"]) for i, r in rows.items()} == {
        "a/1": ("dog", False),
        "t/2": ("sea_animal", True),
        "t/1": (None, False),
    }
    assert {i: (r["domain"], r["split"], r["held_out"], r["label"]) for i, r in rows.items()} == {
        "t/1": ("t", "in", True, "dog"),
        "t/2": ("t", "out", True, "sea_animal"),
        "a/1": ("a", "out", False, "dog_house"),
    }


def test_a_reasoned_answer_names_its_class_in_its_conclusion_alone():
    texts = {
        "t/1": "<SUMMARY>dog house</SUMMARY> <CONCLUSION> Dog. </CONCLUSION>",
        "t/2": "sea animal",
        "a/1": "<CONCLUSION>dog</CONCLUSION><CONCLUSION>dog house</CONCLUSION>",
    }
    rows = score("reasoning", texts)
    assert {i: (r["prediction"], r["correct"]) for i, r in rows.items()} == {
        "t/1": ("dog", True),
        "t/2": (None, False),
        "a/1": ("dog", False),
    }
    assert {i: r["text"] for i, r in rows.items()} == texts


def test_of_domains_held_out_together_the_mean_over_domains_is_reported():
    table = predictions(
        ("direct", "s", "in", True, "1111"),
        ("direct", "s", "out", True, "1"),
        ("direct", "t", "in", True, "01"),
        ("direct", "t", "out", True, "0"),
        ("direct", "a", "out", False, "1"),
    )
    assert accuracies(table)["direct"] == {
        "target_in": pytest.approx(0.75),
        "target_out": pytest.approx(0.5),
        "target_all": pytest.approx((1 + 1 / 3) / 2),
        "validation": 1.0,
    }


def test_an_image_that_does_not_decode_stops_the_evaluation_by_name():
    answers = pa.Table.from_pylist([{"id": "t/1", "error": "t/1: does not decode"}], schema=ANSWER_SCHEMA)
    with pytest.raises(ValueError, match="t/1: does not decode"):
        score_answers(answers, SAMPLES, CLASSES, "direct")


def test_an_answer_names_one_of_its_own_samples_options():
    samples = SAMPLES.append_column("question", pa.array(["Is it day?", "Is it day?", "Where to?"]))
    samples = samples.append_column("options", pa.array([["yes", "no"], ["Yes", "No"], ["up", "down"]]))
    samples = samples.set_column(4, "label", pa.array(["no", "Yes", "up"]))
    for pathway, form in (("direct", "{}"), ("reasoning", "<CONCLUSION>{}</CONCLUSION>")):
        texts = {"t/1": form.format("no"), "t/2": form.format("yes"), "a/1": form.format("dog")}
        rows = score(pathway, texts, samples)
        assert {i: (r["prediction"], r["correct"]) for i, r in rows.items()} == {
            "t/1": ("no", True),
            "t/2": ("Yes", True),
            "a/1": (None, False),
        }
