"""The five-section chain: how it is written, read back strictly, and judged.

A chain of reasoning in DomainBed-Reasoning has five sections in a fixed order, each in a tag pair
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

SECTIONS = ("SUMMARY", "CAPTION", "REASONING", "REFLECTION", "CONCLUSION")
TAGS = tuple(tag for section in SECTIONS for tag in (f"<{section}>", f"</{section}>"))

IMAGE_MARK = "<image>"
"""What stands for an image in a conversation; no text of a sample or a chain may hold it."""

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_SECTION_SEPARATOR = "\n"


class ChainFormatError(ValueError):
    """A text is not a five-section chain. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


# Tokenizers read these as what they stand for, and not as text: images, turns, the end of an answer.
_MODEL_MARK = re.compile(
    rf"{IMAGE_MARK}|</?(?:video|img|s|IMG_CONTEXT|image_soft_token|start_of_image|end_of_turn|start_of_turn|eos|bos|pad)>"
    r"|<\|[^<>|\s]{1,40}\|>"
)


@dataclass(frozen=True)
class Chain:
    """A parsed chain: the text of each section, stripped of surrounding white space."""

    summary: str
    caption: str
    reasoning: str
    reflection: str
    conclusion: str

    def render(self) -> str:
        """The chain as text, one section on a line."""
        return render_chain({section: getattr(self, section.lower()) for section in SECTIONS})


def render_chain(sections: Mapping[str, str]) -> str:
    """Write the five sections, in order, one on a line. Keys are the names in ``SECTIONS``."""
    return _SECTION_SEPARATOR.join(f"<{s}>{sections[s].strip()}</{s}>" for s in SECTIONS)


def parse_chain(text: str) -> Chain:
    """Read a chain strictly: every section once, in order, none empty, nothing outside the tags.

    Raises:
        ChainFormatError: with ``reason`` one of ``missing_section``, ``wrong_order``,
            ``text_outside``, ``empty_section``, ``model_mark``; the message names the section or mark.
    """
    found = [match.group() for match in _TAG.finditer(text)]
    for tag in TAGS:
        if tag not in found:
            raise ChainFormatError("missing_section", f"the chain has no {tag}")
    if found != list(TAGS):
        raise ChainFormatError(
            "wrong_order", f"the tags are not the five sections once and in order: {' '.join(found)}"
        )
    # With the tags known to alternate, splitting at them gives outside, section, outside, ...
    pieces = _TAG.split(text)
    outside = "".join(pieces[0::2]).strip()
    if outside:
        raise ChainFormatError("text_outside", f"text outside the five sections: {outside[:80]!r}")
    sections = [piece.strip() for piece in pieces[1::2]]
    for name, section in zip(SECTIONS, sections, strict=True):
        if not section:
            raise ChainFormatError("empty_section", f"the section <{name}> is empty")
    if mark := _MODEL_MARK.search(text):
        raise ChainFormatError(
            "model_mark", f"the chain holds {mark.group()}, which a model does not read as text"
        )
    return Chain(*sections)


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

    Accepted are chains of the five sections, once each and in order, whose conclusion is the label. The
    reasons of rejection are those of ``ChainFormatError``, ``not_a_class`` and ``wrong_class``.
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
