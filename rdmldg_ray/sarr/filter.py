"""Which of the model's own chains are kept: a plain function of a candidate and its label."""

from rdmldg_ray.chains.format import conclusion_of
from rdmldg_ray.chains.verdict import Verdict, judge_text
from rdmldg_ray.config import FilterConfig


def judge(
    text: str,
    label: str,
    class_names: list[str],
    num_tokens: int,
    logprob: float,
    finished: bool,
    config: FilterConfig,
) -> Verdict:
    """Judge one candidate.

    Kept are chains of the five stages, once each and in order, whose conclusion is the label (the
    paper's filter), within the configured bounds. The reasons of rejection are ``unfinished``, those
    of ``judge_text``, ``too_long`` and ``low_logprob``.

    Args:
        logprob: sum over the candidate's tokens, in nats.
        finished: whether the candidate ended by itself rather than at the token limit.
    """
    if not finished:
        return Verdict(conclusion_of(text), "unfinished")
    verdict = judge_text(text, label, class_names)
    if verdict.kept and config.max_tokens is not None and num_tokens > config.max_tokens:
        return Verdict(verdict.conclusion, "too_long")
    if verdict.kept and config.min_logprob is not None and logprob / max(num_tokens, 1) < config.min_logprob:
        return Verdict(verdict.conclusion, "low_logprob")
    return verdict
