"""A teacher of rules: writes a chain from an image's known name, keywords and pixels.

It stands in for the large multimodal teacher of DomainBed-Reasoning where none can be run: for the
embedded data set, for pre-training a small student, for tests. Unlike that teacher it *knows* the
label, so its chains always conclude rightly and need no rejection; what it keeps of the method is the
form: the label itself is named in the conclusion alone, and the sections before it lead there.

The chains are short (about 50 words), since a chain's length is what its training costs.
"""

import random
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image

from rdmldg_ray.chains.format import display_name, match_class, normalize_answer, render_chain

# What a class is, in words that name no class: (what it is broadly, what tells it from its relatives).
# A class that is not listed gets a phrase that fits any.
KINDS = {
    "bird": ("a creature", "with feathers and wings"),
    "bug": ("a creature", "that is small and crawls or buzzes"),
    "mammal": ("a creature", "with fur or hair"),
    "sea animal": ("a creature", "that lives under water"),
    "meal": ("food", "that was cooked or baked"),
    "produce": ("food", "that is a fruit or vegetable"),
    "plant": ("something", "with leaves or petals"),
    "drink": ("something", "to sip from a cup or bottle"),
    "building": ("something", "with walls and a roof"),
    "clothing": ("something", "to wear"),
    "tool": ("something", "that helps with work"),
    "vehicle": ("something", "that carries people along"),
}
_ANY_KIND = "one clear kind of thing"
_OTHER_KIND = "another kind of thing"

SUMMARIES = (
    "I look at the picture and choose one of the options.",
    "The task is to say what sort of object is shown.",
    "One object is shown; I look for the option that fits it.",
    "I want to find out which option fits this picture.",
)
_CAPTIONS = (
    "{name} {look}, {shape}.",
    "Picture of {name} {look}; it is {shape}.",
    "Seen here: {name} {look}. It is {shape}.",
    "The object is {shape}: {name} {look}.",
)
_REASONINGS = (
    "This goes with {keywords}, which points to {kind}.",
    "Words such as {keywords} come to mind. They suggest {kind}.",
    "With {keywords} in mind, this must be {kind}.",
    "It makes me think of {keywords}, so I expect {kind}.",
)
_REASONINGS_WITHOUT_KEYWORDS = (
    "Its form and its parts point to {kind}.",
    "From the way it looks, this must be {kind}.",
)
REFLECTIONS = (
    "What about {other}? That would be {kind}, which fits less.",
    "I also thought of {other}, but that would be {kind}, and I do not see it here.",
    "{other} fits less, since that would be {kind}.",
    "Another choice is {other}; that means {kind}, which is less likely.",
)
_NO_REFLECTION = "No other option is offered, so nothing else can fit better."

_UNNAMED = "one object"
_JOINING_WORDS = {"a", "an", "and", "at", "for", "in", "of", "on", "or", "the", "with", "without"}

# Pixels within this distance of white, in each channel of 0..255, count as paper.
_PAPER = 16
# The colours of the hue circle, each up to its bound in degrees (red again beyond the last), and those
# that are told by darkness or paleness.
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black")
_HUE_BOUNDS = (14, 38, 68, 165, 255, 290, 340)


def write_chain(
    *,
    name: str,
    keywords: Sequence[str],
    label: str,
    options: Sequence[str],
    image: Image.Image,
    seed: int,
    kinds: Mapping[str, tuple[str, str]] = KINDS,
    summaries: Sequence[str] = SUMMARIES,
    reflections: Sequence[str] = REFLECTIONS,
) -> str:
    """A five-section chain that concludes with the label; the same arguments always give the same text.

    Args:
        name: what the image shows, finer than the label ("owl" for the label "bird"). Words of the
            label are dropped from it.
        keywords: words that go with it; those that hold a word of the label, of an option or of the
            name are passed over. May be empty.
        label: the class; must be one of the options.
        options: class names as in the prompt; one of them, where there is another, is weighed and
            rejected in the reflection.
        image: the picture, of any mode and size; its colours and extent go into the caption.
        seed: chooses the wording, the keywords and the rejected option.
        kinds: what an option means, as ``KINDS``, by ``normalize_answer`` of it.
        summaries: wordings of the first stage.
        reflections: wordings of the fourth, with places for ``{other}``, the rejected option, and its
            ``{kind}``.

    Raises:
        ValueError: when the label is empty or not among the options.
    """
    if not normalize_answer(label):
        raise ValueError(f"a chain needs a label to conclude with, not {label!r}")
    if match_class(label, options) is None:
        raise ValueError(f"the label {label!r} is not one of the options: {', '.join(options)}")
    # The name joins the seed, so that one seed for a whole data set does not give one wording.
    rng = random.Random(f"{seed}/{name}")
    label_words = _words([label])
    option_words = _words(options)

    look, shape = _describe(image)
    caption = rng.choice(_CAPTIONS).format(
        name=_without(name, label_words) or _UNNAMED, look=look, shape=shape
    )
    clues = [
        _plain(keyword)
        for keyword in dict.fromkeys(keywords)
        if re.search(r"[^\W\d_]{3}", keyword) and not _mentions(keyword, option_words | _words([name]))
    ]
    if clues:
        chosen = sorted(rng.sample(range(len(clues)), min(len(clues), rng.choice((2, 3)))))
        reasoning = rng.choice(_REASONINGS).format(
            keywords=_enumerate([clues[i] for i in chosen]), kind=_kind(label, kinds, option_words, _ANY_KIND)
        )
    else:
        reasoning = rng.choice(_REASONINGS_WITHOUT_KEYWORDS).format(
            kind=_kind(label, kinds, option_words, _ANY_KIND)
        )
    return render_chain(
        {
            "SUMMARY": rng.choice(summaries),
            "CAPTION": _capitalize(caption),
            "REASONING": _capitalize(reasoning),
            "REFLECTION": _capitalize(
                _reflection(
                    label=label,
                    options=options,
                    label_words=label_words,
                    kinds=kinds,
                    reflections=reflections,
                    rng=rng,
                )
            ),
            "CONCLUSION": display_name(label),
        }
    )


def _reflection(
    label: str,
    options: Sequence[str],
    label_words: set[str],
    kinds: Mapping[str, tuple[str, str]],
    reflections: Sequence[str],
    rng: random.Random,
) -> str:
    others = [o for o in options if normalize_answer(o) and match_class(o, [label]) is None]
    # An option such as "dog house" would bring the label "dog" back in; take another where there is one.
    others = [o for o in others if not _mentions(o, label_words)] or others
    if not others:
        return _NO_REFLECTION
    # A relative is the more telling rival: a bird is weighed against a mammal, not against a tool.
    family = kinds.get(normalize_answer(label), ("", ""))[0]
    relatives = [o for o in others if kinds.get(normalize_answer(o), (None,))[0] == family]
    other = rng.choice(relatives or others)
    kind = _kind(other, kinds, label_words, _OTHER_KIND)
    return rng.choice(reflections).format(other=_plain(other), kind=kind)


def _kind(class_name: str, kinds: Mapping[str, tuple[str, str]], banned: set[str], fallback: str) -> str:
    kind = " ".join(kinds.get(normalize_answer(class_name), ()))
    return kind if kind and not _mentions(kind, banned) else fallback


def _words(texts: Sequence[str]) -> set[str]:
    """The words that give a text away; a plural's "s" is dropped, so that both numbers are caught."""
    words = {word for text in texts for word in normalize_answer(text).split()}
    return {word if len(word) <= 3 else word.removesuffix("s") for word in words - _JOINING_WORDS}


def _mentions(text: str, banned: Collection[str]) -> bool:
    """Whether a word of the text is, or (from three letters on) holds, a banned word: ladybird, bird."""
    return any(
        word == b or (len(b) >= 3 and b in word) for word in normalize_answer(text).split() for b in banned
    )


def _without(name: str, banned: set[str]) -> str:
    """The name less its banned words, and less the joining words that then hang at its ends."""
    kept = [word for word in _plain(name).split() if not _mentions(word, banned)]
    while kept and normalize_answer(kept[0]) in _JOINING_WORDS | {""}:
        kept.pop(0)
    while kept and normalize_answer(kept[-1]) in _JOINING_WORDS | {""}:
        kept.pop()
    return " ".join(kept)


def _plain(text: str) -> str:
    """A name as shown, with plain apostrophes and without the brackets that could form a tag."""
    return display_name(text.replace("\u2019", "'").replace("<", " ").replace(">", " "))


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def _describe(image: Image.Image) -> tuple[str, str]:
    """How the picture looks (its one or two main colours, or that it is drawn in lines), and its extent."""
    pixels = image.convert("RGBA")
    flat = Image.new("RGBA", pixels.size, "white")
    flat.alpha_composite(pixels)
    rgb = flat.convert("RGB")
    ink = np.asarray(rgb).min(axis=2) < 255 - _PAPER
    if not ink.any():
        return "in white", "without an outline"
    rows, columns = np.nonzero(ink)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return _look(np.asarray(rgb.convert("HSV"))[ink], ink.sum() / (height * width)), _shape(width / height)


def _look(hsv: np.ndarray, filled: float) -> str:
    """From the hue, saturation and value (0..255) of what is drawn, and the share of its box it fills."""
    counts = np.bincount(_colour_numbers(hsv), minlength=len(_COLOURS)) / len(hsv)
    shares = sorted(zip(counts.tolist(), _COLOURS, strict=True), reverse=True)
    colourless = sum(share for share, colour in shares if colour in ("black", "gray"))
    # Lines leave much of their box empty, and the gray between black and paper is only their soft edge.
    if colourless > 0.98 and shares[0][1] == "black" and filled < 0.67:
        return "drawn in black lines"
    return "in " + _enumerate([colour for share, colour in shares[:2] if share >= 0.15] or [shares[0][1]])


def _colour_numbers(hsv: np.ndarray) -> np.ndarray:
    """The place in _COLOURS of each row of hue, saturation, value (0..255)."""
    hue, saturation, value = hsv.astype(int).T
    hue = hue * 360 // 255
    colours: np.ndarray = np.searchsorted(_HUE_BOUNDS, hue, side="right") % len(_HUE_BOUNDS)
    colours[(hue >= 8) & (hue < 48) & (value < 200)] = _COLOURS.index("brown")
    colours[(hue < 8) & (value < 190) & (saturation < 175)] = _COLOURS.index("brown")
    pale_red = ((hue < 20) | (hue >= 340)) & (saturation < 130) & (value >= 200)
    colours[pale_red] = _COLOURS.index("pink")
    colours[saturation < 40] = _COLOURS.index("gray")
    colours[value < 70] = _COLOURS.index("black")
    return colours


def _shape(ratio: float) -> str:
    """The extent in words, from width over height."""
    if ratio >= 1.25:
        return "wider than tall"
    return "taller than wide" if ratio <= 0.8 else "about as wide as tall"
