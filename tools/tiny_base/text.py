"""What is asked about a picture, and answered, while the encoder and the decoder are joined."""

import re
from collections import Counter

import numpy as np
from PIL import Image

from rdmldg_ray.chains.prompts import direct_prompt, reasoning_prompt
from tools.iconbed.rule_teacher import write_chain
from tools.tiny_base.pictures import Picture

NAME_QUESTION = "What is this?"
# Unicode's subgroups that are IconBed's classes, or contain them, never serve as options.
_LIKE_ICONBED = (
    "animal",
    "cat-face",
    "clothing",
    "dishware",
    "drink",
    "food",
    "monkey-face",
    "place-building",
    "place-religious",
    "plant",
    "tool",
    "transport-ground",
)
_WORD_COUNT = 8  # drawings that a word must belong to before it can be an option


class Texts:
    """Questions and answers about pictures, with options from several systems of classes."""

    def __init__(self, pictures: list[Picture]):
        names = Counter(picture.concept for picture in pictures)
        self.concepts = sorted(names)
        self.groups = sorted({p.group for p in pictures if p.group and not p.group.startswith(_LIKE_ICONBED)})
        counts = Counter(word for picture in pictures for word in set(picture.words))
        self.words = sorted(w for w, n in counts.items() if n >= _WORD_COUNT and re.fullmatch("[a-z]{3,}", w))

    def classes(self, picture: Picture, random: np.random.Generator, whole: bool) -> tuple[str, list[str]]:
        """A label for a picture, and 4 to 14 options with it among them.

        ``whole`` allows the picture's full name as the label.
        """
        known = [word for word in picture.words if word in self.words]
        systems = (
            (["group"] * 2 if picture.group in self.groups else [])
            + (["word"] if known else [])
            + (["concept"] if whole or not known else [])
        )
        system = systems[random.integers(len(systems))]
        if system == "group":
            label, others = picture.group, self.groups
        elif system == "word":
            label, others = known[random.integers(len(known))], self.words
        else:
            label, others = picture.concept, self.concepts
        chosen = {label}
        wanted = int(random.integers(4, 15)) if system != "concept" else int(random.integers(3, 9))
        while len(chosen) < wanted:
            other = others[random.integers(len(others))]
            if other not in picture.words and other != picture.concept:
                chosen.add(other)
        options = [option.replace("-", " ") for option in sorted(chosen)]
        if random.random() < 0.5:
            random.shuffle(options)
        return label.replace("-", " "), options

    def direct(self, picture: Picture, random: np.random.Generator) -> tuple[str, str]:
        """The direct pathway: question and answer."""
        label, options = self.classes(picture, random, whole=True)
        return direct_prompt(options), label

    def chain(self, picture: Picture, image: np.ndarray, random: np.random.Generator) -> tuple[str, str]:
        """The reasoning pathway: question and five-stage chain, for the image as it is shown."""
        label, options = self.classes(picture, random, whole=False)
        chain = write_chain(
            name=picture.concept,
            keywords=list(picture.words),
            label=label,
            options=options,
            image=Image.fromarray(image),
            seed=int(random.integers(2**31)),
        )
        return reasoning_prompt(options), chain

    def name(self, picture: Picture) -> tuple[str, str]:
        """The plain question for the name."""
        return NAME_QUESTION, picture.concept

    def corpus(self, pictures: list[Picture], views: np.ndarray, count: int, seed: int = 0) -> list[str]:
        """Texts for the tokenizer to learn from."""
        random = np.random.default_rng(seed)
        texts: list[str] = []
        for index in random.integers(len(pictures), size=count):
            picture = pictures[index]
            texts.extend(self.chain(picture, views[picture.views[0]], random))
            texts.extend(self.direct(picture, random))
            texts.extend([*self.name(picture), ", ".join(picture.words)])
        return texts
