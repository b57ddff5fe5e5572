"""Adaptive reasoning: answer directly when the direct pathway is sure, reason when it is not.

A plain function of stored predictions of both pathways. Sureness is the probability that the direct
pathway gives to its own answer, which is constrained to the class names; the threshold on it is chosen
on the sources' validation data and then applied to the held-out domain. A direct answer is always paid
for, since it tells whether to reason.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Answers:
    """Both pathways' answers to the same images."""

    sureness: np.ndarray
    """(n,) probability that the direct pathway gives to its answer, in 0..1."""
    direct_correct: np.ndarray
    """(n,) bool."""
    reasoning_correct: np.ndarray
    """(n,) bool."""
    direct_tokens: np.ndarray
    """(n,) tokens generated."""
    reasoning_tokens: np.ndarray
    """(n,) tokens generated."""

    def __len__(self) -> int:
        return len(self.sureness)


@dataclass(frozen=True)
class Point:
    """What a threshold gives on a set of images."""

    threshold: float
    """An image is reasoned about when the direct pathway's sureness is below this: 0 never reasons,
    infinity always does."""
    accuracy: float
    error: float
    """Standard error of the accuracy, sqrt(p (1 - p) / n)."""
    tokens: float
    """Mean tokens generated for an image."""
    reasoned: float
    """Share of images reasoned about."""


def pair_answers(predictions: pa.Table, held_out: bool) -> Answers:
    """The answers of both pathways to the held-out domain, or to the sources' validation parts.

    Raises:
        ValueError: when a pathway did not answer.
    """
    mine = predictions.filter(pc.equal(predictions["held_out"], held_out))
    columns = ["id", "correct", "num_tokens", "logprob"]
    pathways = {
        pathway: mine.filter(pc.field("pathway") == pathway).select(columns).sort_by("id")
        for pathway in ("direct", "reasoning")
    }
    direct, reasoning = pathways["direct"], pathways["reasoning"]
    for pathway, answers in pathways.items():
        if not len(answers):
            raise ValueError(
                f"the {pathway} pathway did not answer; run with evaluation.pathways=direct,reasoning"
            )
    assert direct["id"].to_pylist() == reasoning["id"].to_pylist(), "the pathways answered other images"
    return Answers(
        sureness=np.exp(direct["logprob"].to_numpy()),
        direct_correct=np.array(direct["correct"].to_pylist(), bool),
        reasoning_correct=np.array(reasoning["correct"].to_pylist(), bool),
        direct_tokens=direct["num_tokens"].to_numpy(),
        reasoning_tokens=reasoning["num_tokens"].to_numpy(),
    )


def point_at(answers: Answers, threshold: float) -> Point:
    """Accuracy and cost at a threshold."""
    reason = answers.sureness < threshold
    accuracy = float(np.where(reason, answers.reasoning_correct, answers.direct_correct).mean())
    tokens = answers.direct_tokens + np.where(reason, answers.reasoning_tokens, 0)
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(answers)))
    return Point(
        threshold=threshold,
        accuracy=accuracy,
        error=error,
        tokens=float(tokens.mean()),
        reasoned=float(reason.mean()),
    )


def always_reasoning(answers: Answers) -> Point:
    """The reasoning pathway alone, which does not pay for a direct answer."""
    accuracy = float(answers.reasoning_correct.mean())
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(answers)))
    return Point(
        threshold=np.inf,
        accuracy=accuracy,
        error=error,
        tokens=float(answers.reasoning_tokens.mean()),
        reasoned=1.0,
    )


def curve(answers: Answers, points: int = 51) -> list[Point]:
    """Accuracy against tokens from never reasoning to always, at quantiles of the sureness."""
    quantiles = np.quantile(answers.sureness, np.linspace(0, 1, points)[1:])
    thresholds = [0.0, *np.unique(quantiles).tolist(), np.inf]
    return [point_at(answers, threshold) for threshold in thresholds]


def choose_threshold(answers: Answers) -> Point:
    """The cheapest point whose accuracy is within one standard error of the best on the curve.

    Args:
        answers: to validation images, never to those that it is then reported on.
    """
    candidates = curve(answers)
    best = max(candidates, key=lambda point: point.accuracy)
    near = [point for point in candidates if point.accuracy >= best.accuracy - best.error]
    return min(near, key=lambda point: point.tokens)


def adaptive_rows(predictions: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What adaptive reasoning gives on the held-out domain, and the curve there.

    Args:
        predictions: of one evaluation, in ``predictions.PREDICTION_SCHEMA``.

    Returns:
        Rows for the direct pathway, the reasoning pathway, and the threshold chosen on the sources'
        validation parts: ``how`` and the fields of ``Point``; and the points of the target's curve.
    """
    target, validation = pair_answers(predictions, True), pair_answers(predictions, False)
    threshold = choose_threshold(validation).threshold
    found = {
        "direct": point_at(target, 0.0),
        "reasoning": always_reasoning(target),
        "adaptive": point_at(target, threshold),
    }
    rows = [{"how": how, **asdict(point)} for how, point in found.items()]
    return rows, [asdict(point) for point in curve(target)]
