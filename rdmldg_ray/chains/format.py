"""The five-stage chain: how it is written, read back strictly, and judged.

A chain of reasoning in DomainBed-Reasoning has five stages in a fixed order, each in a tag pair
of its own (arXiv 2602.23777, section on DomainBed-Reasoning)::

    <SUMMARY>...</SUMMARY>
    <CAPTION>...</CAPTION>
    <REASONING>...</REASONING>
    <REFLECTION>...</REFLECTION>
    <CONCLUSION>dog</CONCLUSION>
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

STAGES = ("SUMMARY", "CAPTION", "REASONING", "REFLECTION", "CONCLUSION")
TAGS = tuple(tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>"))

IMAGE_MARK = "<image>"
"""What stands for an image in a conversation; no text of a sample or a chain may hold it."""

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_STAGE_SEPARATOR = "\n"


class ChainFormatError(ValueError):
    """A text is not a five-stage chain. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Chain:
    """A parsed chain: the text of each stage, stripped of surrounding white space."""

    summary: str
    caption: str
    reasoning: str
    reflection: str
    conclusion: str

    def render(self) -> str:
        """The chain as text, one stage on a line."""
        return render_chain({stage: getattr(self, stage.lower()) for stage in STAGES})


def render_chain(stages: Mapping[str, str]) -> str:
    """Write the five stages, in order, one on a line. Keys are the names in ``STAGES``."""
    return _STAGE_SEPARATOR.join(f"<{s}>{stages[s].strip()}</{s}>" for s in STAGES)


def parse_chain(text: str) -> Chain:
    """Read a chain strictly: every stage once, in order, none empty, nothing outside the tags.

    Raises:
        ChainFormatError: with ``reason`` one of ``missing_stage``, ``wrong_order``,
            ``text_outside``, ``empty_stage``; the message names the stage.
    """
    found = [match.group() for match in _TAG.finditer(text)]
    for tag in TAGS:
        if tag not in found:
            raise ChainFormatError("missing_stage", f"the chain has no {tag}")
    if found != list(TAGS):
        raise ChainFormatError(
            "wrong_order", f"the tags are not the five stages once and in order: {' '.join(found)}"
        )
    # With the tags known to alternate, splitting at them gives outside, stage, outside, ...
    pieces = _TAG.split(text)
    outside = "".join(pieces[0::2]).strip()
    if outside:
        raise ChainFormatError("text_outside", f"text outside the five stages: {outside[:80]!r}")
    stages = [piece.strip() for piece in pieces[1::2]]
    for name, stage in zip(STAGES, stages, strict=True):
        if not stage:
            raise ChainFormatError("empty_stage", f"the stage <{name}> is empty")
    return Chain(*stages)


def conclusion_of(text: str) -> str | None:
    """What stands between the first conclusion tags, however the rest looks; None without them."""
    match = re.search(r"<CONCLUSION>(.*?)</CONCLUSION>", text, re.DOTALL)
    return match.group(1).strip() if match else None


# Every answer is compared with every class: with hundreds of classes most of the work of judging.
@lru_cache(maxsize=4096)
def normalize_answer(text: str) -> str:
    """Fold case, underscores, punctuation and runs of space, so that ``Sea_Animal.`` is ``sea animal``."""
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def match_class(answer: str, class_names: Sequence[str]) -> int | None:
    """Index of the class that the answer names after normalization, or None.

    The whole answer must be the class name: "dog house" is not "dog".
    """
    wanted = normalize_answer(answer)
    for index, name in enumerate(class_names):
        if normalize_answer(name) == wanted:
            return index
    return None


@dataclass(frozen=True)
class Verdict:
    """The answer for one candidate."""

    conclusion: str | None
    reason: str | None
    """Why the candidate is rejected, in a word; None when it is accepted."""

    @property
    def accepted(self) -> bool:
        return self.reason is None


def judge_text(text: str, label: str, class_names: Sequence[str]) -> Verdict:
    """Judge a chain by its text.

    Accepted are chains of the five stages, once each and in order, whose conclusion is the label. The reasons
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
