"""Whether a chain may be trained on: its five stages are there, and they conclude with the label."""

from collections.abc import Sequence
from dataclasses import dataclass

from rdmldg_ray.chains.format import (
    ChainFormatError,
    conclusion_of,
    match_class,
    normalize_answer,
    parse_chain,
)


@dataclass(frozen=True)
class Verdict:
    """The answer for one candidate."""

    conclusion: str | None
    reason: str | None
    """Why the candidate is rejected, in a word; None when it is kept."""

    @property
    def kept(self) -> bool:
        return self.reason is None


def judge_text(text: str, label: str, class_names: Sequence[str]) -> Verdict:
    """Judge a chain by its text.

    Kept are chains of the five stages, once each and in order, whose conclusion is the label. The reasons
    of rejection are those of ``ChainFormatError``, ``not_a_class`` and ``wrong_class``.
    """
    try:
        conclusion = parse_chain(text).conclusion
    except ChainFormatError as error:
        return Verdict(conclusion_of(text), error.reason)
    if match_class(conclusion, class_names) is None:
        return Verdict(conclusion, "not_a_class")
    if normalize_answer(conclusion) != normalize_answer(label):
        return Verdict(conclusion, "wrong_class")
    return Verdict(conclusion, None)
