import math

import pyarrow as pa
import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.config.schema import FilterConfig, SarrConfig
from rdmldg_ray.engines.engine import ANSWER_SCHEMA
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA, judge_answers
from rdmldg_ray.sarr.sampling import draw_candidates

CLASSES = ["cat", "dog"]
SAMPLES = pa.table(
    {
        "id": ["d/a", "d/b", "e/c"],
        "label": ["dog", "cat", "dog"],
        "domain": ["d", "d", "e"],
        "file": ["f"] * 3,
        "row": [0, 1, 2],
    }
)
KNOWN = {row["id"]: row for row in SAMPLES.to_pylist()}


def chain(conclusion):
    return render_chain({**dict.fromkeys(SECTIONS, "words"), "CONCLUSION": conclusion})


def answer(sample_id, text, attempt=0, **others):
    known = {"num_tokens": 10, "logprob": -5.0, "finished": True, "label_logprob": None, "error": None}
    return {"id": sample_id, "candidate": attempt, "text": text, **known, **others}


def answers(*rows):
    return pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)


def judge(*rows, label_probs=None, bounds=None):
    return judge_answers(answers(*rows), KNOWN, label_probs or {}, CLASSES, bounds or FilterConfig())


def test_each_answer_gets_its_samples_label_and_the_filters_verdict():
    # In the order in which engines finish, not in that of the samples.
    judged = judge(answer("e/c", chain("cat")), answer("d/a", chain("dog"), attempt=2), answer("d/b", "?"))
    assert judged.schema.equals(CANDIDATE_SCHEMA)
    rows = {row["id"]: row for row in judged.to_pylist()}
    assert {
        i: (r["label"], r["domain"], r["accepted"], r["reason"], r["conclusion"]) for i, r in rows.items()
    } == {
        "e/c": ("dog", "e", False, "wrong_class", "cat"),
        "d/a": ("dog", "d", True, None, "dog"),
        "d/b": ("cat", "d", False, "missing_section", None),
    }
    assert rows["d/a"]["candidate"] == 2


def test_scores_stand_beside_each_candidate():
    looping = "one two three four " * 5
    [row] = judge(answer("d/b", looping), label_probs={"d/b": 0.25}).to_pylist()
    assert (row["text"], row["num_tokens"], row["mean_logprob"], row["label_prob"]) == (
        looping,
        10,
        -0.5,
        0.25,
    )
    assert row["repetition"] == pytest.approx(1 - 4 / 17)
    assert row["agreement"] is None, "not before all are drawn"


def test_an_image_that_did_not_decode_has_its_error_and_no_scores():
    bad = answer("d/a", "", num_tokens=0, logprob=0.0, finished=False, error="d/a: does not decode")
    [row] = judge(bad).to_pylist()
    assert (row["accepted"], row["reason"], row["error"]) == (False, "bad_image", "d/a: does not decode")
    assert (row["mean_logprob"], row["label_prob"]) == (None, None)


def test_the_configured_bounds_are_applied():
    assert judge(answer("d/a", chain("dog")), bounds=FilterConfig(max_tokens=9))["reason"].to_pylist() == [
        "too_long"
    ]


class Script:
    """Stands where the engines are: gives each image the text that its attempt's line names."""

    def __init__(self, *conclusions, label_prob=0.5, bad=()):
        self.conclusions = conclusions
        self.label_prob = label_prob
        self.bad = bad
        self.requests = []
        self.scored = []

    def generate(self, samples, request):
        self.requests.append((request.temperature, samples["id"].to_pylist()))
        self.scored.append(request.score_label)
        for sample_id in samples["id"].to_pylist():
            error = f"{sample_id}: does not decode" if sample_id in self.bad else None
            text = "" if error else chain(self.conclusions[request.candidate][sample_id])
            label_logprob = math.log(self.label_prob) if request.score_label else None
            yield answers(
                answer(sample_id, text, request.candidate, label_logprob=label_logprob, error=error)
            )


def draw(script, **settings):
    written, progress = [], []
    draw_candidates(
        script,
        SAMPLES,
        CLASSES,
        SarrConfig(**settings),
        seed=0,
        write=written.append,
        progress=lambda done, total, text: progress.append((done, total, text)),
    )
    return pa.concat_tables(written).to_pylist(), progress


FIRST = {"d/a": "dog", "d/b": "dog", "e/c": "cow"}


def test_only_images_without_a_kept_chain_are_drawn_again():
    script = Script(FIRST, {"d/b": "cat", "e/c": "cat"}, {"e/c": "dog"})
    rows, progress = draw(script, max_attempts=4, temperatures=[0.5, 1.0])
    assert script.requests == [(0.5, ["d/a", "d/b", "e/c"]), (1.0, ["d/b", "e/c"]), (1.0, ["e/c"])]
    assert [(r["id"], r["candidate"], r["accepted"]) for r in rows] == [
        ("d/a", 0, True),
        ("d/b", 0, False),
        ("e/c", 0, False),
        ("d/b", 1, True),
        ("e/c", 1, False),
        ("e/c", 2, True),
    ]
    assert progress[-1] == (6, 6, "candidate 3, 3/3 images with a chain")


@pytest.mark.parametrize("attempts", [1, 2])
def test_drawing_ends_at_the_limit_and_every_candidate_is_written(attempts):
    script = Script(FIRST, {"d/b": "dog", "e/c": "cat"})
    rows, _ = draw(script, max_attempts=attempts)
    assert len(script.requests) == attempts
    assert len(rows) == (3 if attempts == 1 else 5)
    assert {r["id"] for r in rows if r["accepted"]} == {"d/a"}


def test_with_a_fixed_number_every_image_is_drawn_as_often():
    script = Script(FIRST, FIRST, FIRST)
    rows, _ = draw(script, max_attempts=3, sampling="fixed")
    assert [ids for _, ids in script.requests] == [["d/a", "d/b", "e/c"]] * 3
    assert [(r["id"], r["candidate"]) for r in rows] == [(i, k) for k in range(3) for i in FIRST]


def test_the_label_is_scored_once_and_stands_beside_all_of_an_images_candidates():
    script = Script(FIRST, {"d/b": "dog", "e/c": "cat"})
    rows, _ = draw(script, max_attempts=2)
    assert script.scored == [True, False]
    assert [r["label_prob"] for r in rows] == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("sampling", ["until_accepted", "fixed"])
def test_what_no_other_draw_could_mend_is_drawn_once(sampling):
    script = Script(FIRST, FIRST, bad=["d/b"])
    rows, _ = draw(script, max_attempts=2, sampling=sampling)
    assert [r["candidate"] for r in rows if r["id"] == "d/b"] == [0]
    assert [r["reason"] for r in rows if r["id"] == "d/b"] == ["bad_image"]
    improbable = Script(FIRST, FIRST, label_prob=0.1)
    draw(improbable, max_attempts=2, sampling=sampling, filter=FilterConfig(min_label_prob=0.2))
    assert len(improbable.requests) == 1


def test_candidates_keep_their_samples_question_and_options():
    known = {
        "d/a": {"label": "no", "domain": "d", "question": "Is it day?", "options": ["yes", "no"]},
        "e/c": {"label": "up", "domain": "e", "question": "Where to?", "options": ["up", "down"]},
    }
    table = judge_answers(
        answers(answer("e/c", chain("no")), answer("d/a", chain("no"))), known, {}, CLASSES, FilterConfig()
    )
    assert table.schema.names == [*CANDIDATE_SCHEMA.names, "question", "options"]
    assert [(r["question"], r["options"], r["reason"]) for r in table.to_pylist()] == [
        ("Where to?", ["up", "down"], "not_a_class"),
        ("Is it day?", ["yes", "no"], None),
    ]
