"""Candidates that were drawn before, handed out again instead of being drawn once more.

An answer depends on the model, the sample's id, the number of the draw and the seed, and on nothing
that the filter decides. So what one trial of a sweep has drawn serves all others of the same model: each
judges the draws by its own bounds, in the order in which it would have made them, and draws on only
where it wants more than there are. It ends with the candidates that it would have had alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.engines.answer_log import Writer
from rdmldg_ray.engines.engine import ANSWER_SCHEMA, GenerationRequest


class CandidateCache:
    """Stands before an engine pool, which it asks for only when there is something new to draw.

    Args:
        drawn: earlier candidates of the same model, seed and sampling settings, in
            ``candidates.CANDIDATE_SCHEMA``; their verdicts are not read.
        pool: gives the pool.
    """

    def __init__(self, drawn: pa.Table, pool: Callable[[], Writer]):
        self._drawn = drawn
        self._pool = pool
        self.drawn_anew = 0
        """Draws that were made by the pool."""

    def generate(self, samples: pa.Table, request: GenerationRequest) -> Iterator[pa.Table]:
        """Answers in ``ANSWER_SCHEMA`` for the samples of an index: first those known, then new ones."""
        earlier = self._drawn.filter(
            (pc.field("candidate") == request.candidate) & pc.field("id").isin(samples["id"].combine_chunks())
        )
        known = {row["id"]: row for row in earlier.to_pylist()}
        if known:
            yield pa.Table.from_pylist(
                [_answer(row, request) for row in known.values()], schema=ANSWER_SCHEMA
            )
        rest = samples.filter(pa.array([i not in known for i in samples["id"].to_pylist()], pa.bool_()))
        if len(rest):
            self.drawn_anew += len(rest)
            yield from self._pool().generate(rest, request)


def _answer(candidate: dict[str, Any], request: GenerationRequest) -> dict[str, Any]:
    """What the engine answered when a candidate was drawn."""
    label_prob = candidate["label_prob"] if request.score_label else None
    return {
        "id": candidate["id"],
        "candidate": candidate["candidate"],
        "text": candidate["text"],
        "num_tokens": candidate["num_tokens"],
        "logprob": (candidate["mean_logprob"] or 0.0) * candidate["num_tokens"],
        "finished": candidate["finished"],
        "label_logprob": math.log(label_prob) if label_prob else None,
        "error": candidate["error"],
    }
