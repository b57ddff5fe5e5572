"""Which of the model's own chains are kept: a plain function of a candidate and its label."""

from dataclasses import dataclass

from rdmldg_ray.chains.format import (
    ChainFormatError,
    conclusion_of,
    match_class,
    normalize_answer,
    parse_chain,
)
from rdmldg_ray.config import FilterConfig


@dataclass(frozen=True)
class Verdict:
    """The filter's answer for one candidate."""

    conclusion: str | None
    reason: str | None
    """Why the candidate is rejected, in a word; None when it is kept."""

    @property
    def kept(self) -> bool:
        return self.reason is None


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
    of ``ChainFormatError``, ``not_a_class``, ``wrong_class``, ``too_long`` and ``low_logprob``.

    Args:
        logprob: sum over the candidate's tokens, in nats.
        finished: whether the candidate ended by itself rather than at the token limit.
    """
    conclusion = conclusion_of(text)
    if not finished:
        return Verdict(conclusion, "unfinished")
    try:
        conclusion = parse_chain(text).conclusion
    except ChainFormatError as error:
        return Verdict(conclusion, error.reason)
    if match_class(conclusion, class_names) is None:
        return Verdict(conclusion, "not_a_class")
    if normalize_answer(conclusion) != normalize_answer(label):
        return Verdict(conclusion, "wrong_class")
    if config.max_tokens is not None and num_tokens > config.max_tokens:
        return Verdict(conclusion, "too_long")
    if config.min_logprob is not None and logprob / max(num_tokens, 1) < config.min_logprob:
        return Verdict(conclusion, "low_logprob")
    return Verdict(conclusion, None)
