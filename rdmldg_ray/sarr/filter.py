"""Which of the model's own chains are accepted: a plain function of a candidate and its label."""

from collections.abc import Mapping
from typing import Any

from rdmldg_ray.chains.format import OTHER_CONCLUSIONS, Verdict, conclusion_of, judge_text
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.config.schema import FilterConfig

BAD_IMAGE = "bad_image"

# A bound of the config, the score that it bounds, and the reason when the score is beyond it.
_LEAST = (
    ("min_tokens", "num_tokens", "too_short"),
    ("min_logprob", "mean_logprob", "low_logprob"),
    ("min_label_prob", "label_prob", "low_label_prob"),
    ("min_agreement", "agreement", "low_agreement"),
)
_MOST = (
    ("max_tokens", "num_tokens", "too_long"),
    ("max_repetition", "repetition", "repetitive"),
)


def judge(candidate: Mapping[str, Any], class_names: list[str], config: FilterConfig) -> Verdict:
    """Judge one candidate.

    Accepted are chains of the five sections, once each and in order, whose conclusion is the label (the
    paper's filter) unless the config takes any, within the configured bounds. The reasons of rejection are
    ``bad_image``, ``unfinished``, those of ``judge_text``, ``too_short``, ``too_long``, ``repetitive``,
    ``low_logprob``, ``low_label_prob`` and ``low_agreement``.

    Args:
        candidate: a row of ``sarr.candidates.CANDIDATE_SCHEMA``; its own verdict is not read, and a
            score that is not known yet is not bounded.
    """
    if candidate["error"]:
        return Verdict(None, BAD_IMAGE)
    if not candidate["finished"]:
        return Verdict(conclusion_of(candidate["text"]), "unfinished")
    options = question_of(candidate, class_names).options
    verdict = judge_text(candidate["text"], candidate["label"], options)
    if not verdict.accepted and not (config.conclusion == "any" and verdict.reason in OTHER_CONCLUSIONS):
        return verdict
    return Verdict(verdict.conclusion, _beyond_bounds(candidate, config))


def is_hopeless(candidate: Mapping[str, Any], config: FilterConfig) -> bool:
    """Whether no other draw for the same image could be accepted either."""
    bound, score = config.min_label_prob, candidate["label_prob"]
    return bool(candidate["error"]) or (bound is not None and score is not None and score < bound)


def _beyond_bounds(candidate: Mapping[str, Any], config: FilterConfig) -> str | None:
    for setting, score, reason in _LEAST:
        bound, value = getattr(config, setting), candidate[score]
        if bound is not None and value is not None and value < bound:
            return reason
    for setting, score, reason in _MOST:
        bound, value = getattr(config, setting), candidate[score]
        if bound is not None and value is not None and value > bound:
            return reason
    return None
