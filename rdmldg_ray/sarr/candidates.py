"""Candidates: what an engine wrote, with scores and the filter's verdict beside it."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rdmldg_ray.config.schema import FilterConfig
from rdmldg_ray.datasets.schema import QUESTION_SCHEMA
from rdmldg_ray.sarr.filter import judge
from rdmldg_ray.sarr.scores import repetition
from rdmldg_ray.storage import read_table

CANDIDATE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("domain", pa.string()),
        ("candidate", pa.int32()),  # number of the draw for this image, from 0
        ("text", pa.string()),
        ("conclusion", pa.string()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),  # why it is rejected; null when accepted
        ("error", pa.string()),  # what is wrong with the image; null for nearly all
        ("num_tokens", pa.int32()),
        ("finished", pa.bool_()),  # ended by itself, not by the token limit
        ("mean_logprob", pa.float64()),  # mean over the chain's tokens, in nats; null without tokens
        ("label_prob", pa.float64()),  # of the label, by the direct pathway
        ("agreement", pa.float64()),  # share of the image's candidates with this conclusion
        ("repetition", pa.float64()),  # see sarr.scores
    ]
)

_READ = pa.schema(
    [
        field.with_nullable(field.name not in ("id", "label", "domain", "candidate"))
        for field in CANDIDATE_SCHEMA
    ]
)


def read_candidates(location: str, columns: list[str] | None = None) -> pa.Table:
    """Candidates as a round left them, or those of their columns that are wanted."""
    return read_table(location, columns, renamed={"kept": "accepted"}, schema=_READ)


def judge_answers(
    answers: pa.Table,
    samples: Mapping[str, Mapping[str, Any]],
    label_probs: Mapping[str, float],
    class_names: list[str],
    config: FilterConfig,
) -> pa.Table:
    """Answers of an engine as candidates; agreement, which needs all of an image's, is left null.

    Args:
        answers: in ``engines.engine.ANSWER_SCHEMA``.
        samples: ``label`` and ``domain`` by id, and in a data set of questions those of
            ``QUESTION_SCHEMA``, which the candidates get too.
        label_probs: probability of the label by id.
    """
    rows = []
    schema = CANDIDATE_SCHEMA
    for answer in answers.to_pylist():
        sample_id, num_tokens = answer["id"], answer["num_tokens"]
        row = {
            "id": sample_id,
            "label": samples[sample_id]["label"],
            "domain": samples[sample_id]["domain"],
            "candidate": answer["candidate"],
            "text": answer["text"],
            "error": answer["error"],
            "num_tokens": num_tokens,
            "finished": answer["finished"],
            "mean_logprob": answer["logprob"] / num_tokens if num_tokens else None,
            "label_prob": label_probs.get(sample_id),
            "agreement": None,
            "repetition": repetition(answer["text"]),
        }
        if "question" in samples[sample_id]:
            row |= {name: samples[sample_id][name] for name in QUESTION_SCHEMA.names}
            schema = pa.schema([*CANDIDATE_SCHEMA, *QUESTION_SCHEMA])
        rows.append(row | judged(row, class_names, config))
    return pa.Table.from_pylist(rows, schema=schema)


def judged(row: Mapping[str, Any], class_names: list[str], config: FilterConfig) -> dict[str, Any]:
    """The columns of a candidate that the filter fills."""
    verdict = judge(row, class_names, config)
    return {"conclusion": verdict.conclusion, "accepted": verdict.accepted, "reason": verdict.reason}


def label_probabilities(answers: pa.Table) -> dict[str, float]:
    """Probability of the label by id, for the answers whose request asked for it."""
    pairs = zip(answers["id"].to_pylist(), answers["label_logprob"].to_pylist(), strict=True)
    return {sample_id: math.exp(logprob) for sample_id, logprob in pairs if logprob is not None}
