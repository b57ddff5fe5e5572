import pyarrow as pa
import pytest

from rdmldg_ray.chains.format import STAGES, render_chain
from rdmldg_ray.config import FilterConfig, SarrConfig
from rdmldg_ray.engines.engine import ANSWER_SCHEMA
from rdmldg_ray.sarr.sampling import (
    CANDIDATE_SCHEMA,
    judge_answers,
    sample_until_accepted,
    summarize_round,
)

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


def chain(conclusion):
    return render_chain({**dict.fromkeys(STAGES, "words"), "CONCLUSION": conclusion})


def answer(sample_id, text, attempt=0, num_tokens=10, logprob=-5.0, finished=True):
    return dict(
        zip(ANSWER_SCHEMA.names, (sample_id, attempt, text, num_tokens, logprob, finished), strict=True)
    )


def answers(*rows):
    return pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)


def test_each_answer_gets_its_samples_label_and_the_filters_verdict():
    # In the order in which engines finish, not in that of the samples.
    given = answers(answer("e/c", chain("cat")), answer("d/a", chain("dog"), attempt=2), answer("d/b", "?"))
    judged = judge_answers(given, SAMPLES, CLASSES, SarrConfig())
    assert judged.schema.equals(CANDIDATE_SCHEMA)
    rows = {row["id"]: row for row in judged.to_pylist()}
    assert {
        i: (r["label"], r["domain"], r["kept"], r["reason"], r["conclusion"]) for i, r in rows.items()
    } == {
        "e/c": ("dog", "e", False, "wrong_class", "cat"),
        "d/a": ("dog", "d", True, None, "dog"),
        "d/b": ("cat", "d", False, "missing_stage", None),
    }
    assert rows["d/a"]["candidate"] == 2
    assert (rows["d/b"]["text"], rows["d/b"]["num_tokens"], rows["d/b"]["logprob"]) == ("?", 10, -5.0)


def test_the_configured_bounds_are_applied():
    config = SarrConfig(filter=FilterConfig(max_tokens=9))
    judged = judge_answers(answers(answer("d/a", chain("dog"))), SAMPLES, CLASSES, config)
    assert judged["reason"].to_pylist() == ["too_long"]


def test_a_rounds_summary_counts_images_candidates_and_reasons():
    given = answers(
        answer("d/a", chain("dog")),
        answer("d/a", chain("dog"), attempt=1),
        answer("d/b", chain("dog")),
        answer("d/b", "?", attempt=1, num_tokens=3),
        answer("e/c", "?", num_tokens=4),
    )
    assert summarize_round(judge_answers(given, SAMPLES, CLASSES, SarrConfig()), 3) == {
        "images": 3,
        "images_with_chain": 1,
        "candidates": 5,
        "kept": 2,
        "tokens": 37,
        "rejected": {"wrong_class": 1, "missing_stage": 2},
    }


class Script:
    """Stands where the engines are: gives each image the text that its attempt's line names."""

    def __init__(self, *conclusions):
        self.conclusions = conclusions
        self.requests = []

    def generate(self, samples, request):
        self.requests.append((request.temperature, samples["id"].to_pylist()))
        for sample_id in samples["id"].to_pylist():
            yield answers(
                answer(sample_id, chain(self.conclusions[request.attempt][sample_id]), request.attempt)
            )


def sample(script, **settings):
    written, progress = [], []
    sample_until_accepted(
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
    rows, progress = sample(script, max_attempts=4, temperatures=[0.5, 1.0])
    assert script.requests == [(0.5, ["d/a", "d/b", "e/c"]), (1.0, ["d/b", "e/c"]), (1.0, ["e/c"])]
    assert [(r["id"], r["candidate"], r["kept"]) for r in rows] == [
        ("d/a", 0, True),
        ("d/b", 0, False),
        ("e/c", 0, False),
        ("d/b", 1, True),
        ("e/c", 1, False),
        ("e/c", 2, True),
    ]
    assert progress[-1] == (6, 6, "attempt 3, 3/3 images with a chain")


@pytest.mark.parametrize("attempts", [1, 2])
def test_drawing_ends_at_the_limit_and_every_candidate_is_written(attempts):
    script = Script(FIRST, {"d/b": "dog", "e/c": "cat"})
    rows, _ = sample(script, max_attempts=attempts)
    assert len(script.requests) == attempts
    assert len(rows) == (3 if attempts == 1 else 5)
    assert {r["id"] for r in rows if r["kept"]} == {"d/a"}
