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
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

SECTIONS = ("SUMMARY", "CAPTION", "REASONING", "REFLECTION", "CONCLUSION")
TAGS = tuple(tag for section in SECTIONS for tag in (f"<{section}>", f"</{section}>"))

IMAGE_MARK = "<image>"
"""What stands for an image in a conversation; no text of a sample or a chain may hold it."""

OTHER_CONCLUSIONS = ("not_a_class", "wrong_class")
"""The reasons for which chains of the right form are rejected."""

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
# Tokenizers and chat templates read these as images, turns or the end of an answer, and not as text.
_MODEL_MARK = re.compile(
    rf"{IMAGE_MARK}|<\|[^<>|\s]{{1,40}}\|>"
    "|</?(?:video|img|s|IMG_CONTEXT|image_soft_token|start_of_image|end_of_turn|start_of_turn|eos|bos|pad)>"
)
_MARK = re.compile(f"{_TAG.pattern}|{_MODEL_MARK.pattern}")
_SECTION_SEPARATOR = "\n"
# By their category letters and marks, but they show nothing of their own: variation selectors, the grapheme
# joiner, fillers of Hangul, vowels of Khmer that are not written, the line that stretches an Arabic word.
# https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point
_INVISIBLE = re.compile(
    "[\u034f\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_BETWEEN_LETTERS = re.compile(r"(?<!\d) (?!\d)")


class ChainFormatError(ValueError):
    """A text is not a five-section chain. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


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


def find_mark(text: str) -> str | None:
    """The first tag of a chain, or mark of an image or a turn, in a text that may hold none; None without."""
    match = _MARK.search(text)
    return match.group() if match else None


def conclusion_of(text: str) -> str | None:
    """What stands between the first conclusion tags, however the rest looks; None without them."""
    match = re.search(r"<CONCLUSION>(.*?)</CONCLUSION>", text, re.DOTALL)
    return match.group(1).strip() if match else None


# Every answer is compared with every class: with hundreds of classes most of the work of judging.
@lru_cache(maxsize=4096)
def display_name(class_name: str) -> str:
    """A class or folder name as it is shown to a model: ``sea_animal`` becomes ``sea animal``.

    Letters are composed (NFC), so that a folder's name from macOS is shown as one from elsewhere.
    """
    return " ".join(unicodedata.normalize("NFC", class_name).replace("_", " ").split())


@lru_cache(maxsize=4096)
def normalize_answer(text: str) -> str:
    """Fold case, underscores, punctuation and runs of space, so that ``Sea_Animal.`` is ``sea animal``.

    Ways to write the same letter are folded too (NFKC): composed or not, full-width, ligatures, the i with
    and without its dot. Marks that change a letter (accents, vowel signs) count.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding case may take a letter apart again, and leaves a dot over the i of the Turkish capital.
    folded = unicodedata.normalize("NFKC", folded).replace("i\u0307", "i").replace("\u0131", "i")
    return " ".join("".join(map(_kept, folded)).split())


def _kept(character: str) -> str:
    """A letter, mark or digit itself, nothing for what cannot be seen, a space for anything else."""
    if _INVISIBLE.match(character) or unicodedata.category(character) == "Cf":
        return ""
    # ``\w`` leaves out marks, without which words of many scripts are told apart no more.
    return character if unicodedata.category(character)[0] in "LMN" else " "


@lru_cache(maxsize=4096)
def _joined(text: str) -> str:
    """``normalize_answer`` without spaces between letters: ``Tooth-brush`` is ``toothbrush``.

    A space beside a digit stays, so that ``1.5`` is not ``15``.
    """
    return _BETWEEN_LETTERS.sub("", normalize_answer(text))


def find_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that an answer could not tell apart, as ``match_class`` reads it; None without."""
    seen: dict[str, str] = {}
    for name in names:
        key = _joined(name) or name
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None


def find_listed(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names of which one reads as a list with the other: ``cat`` and ``cat, dog``; else None.

    Prompts list options with commas between them, so that nobody could tell which of the two is meant.
    """
    known = {_joined(name): name for name in names}
    for name in names:
        for part in name.split(",") if "," in name else ():
            other = known.get(_joined(part))
            if other is not None and other != name:
                return other, name
    return None


def match_class(answer: str, class_names: Sequence[str]) -> int | None:
    """Index of the class that the answer names, or None.

    A class's name as it is displayed comes first; then names are compared after normalization, and then also
    without spaces between words. The whole answer must be the class name: "dog house" is not "dog". An answer
    that fits several classes names none of them.
    """
    for fold in (display_name, normalize_answer, _joined):
        wanted = fold(answer)
        found = [index for index, name in enumerate(class_names) if fold(name) == wanted]
        if wanted and found:
            return found[0] if len(found) == 1 else None
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
    named = match_class(conclusion, class_names)
    if named is None:
        return Verdict(conclusion, "not_a_class")
    if class_names[named] != label:
        return Verdict(conclusion, "wrong_class")
    return Verdict(conclusion, None)
