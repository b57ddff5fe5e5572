"""What is asked about a picture, and answered, while the encoder and the decoder are joined."""

import re
from collections import Counter

import numpy as np
from PIL import Image

from rdmldg_ray.chains.prompts import direct_prompt, reasoning_prompt
from tools.iconbed.rule_teacher import write_chain
from tools.tiny_base import classes
from tools.tiny_base.pictures import Picture

NAME_QUESTION = "What is this?"
_WORD_COUNT = 8  # drawings that a word must belong to before it can be an option


class Texts:
    """Questions and answers about pictures, with options from several systems of classes."""

    def __init__(self, pictures: list[Picture]):
        names = Counter(picture.concept for picture in pictures)
        self.concepts = sorted(names)
        counts = Counter(word for picture in pictures for word in set(picture.words))
        self.words = sorted(w for w, n in counts.items() if n >= _WORD_COUNT and re.fullmatch("[a-z]{3,}", w))

    def classes(self, picture: Picture, random: np.random.Generator, whole: bool) -> tuple[str, list[str]]:
        """A label for a picture, and 4 to 14 options with it among them.

        Mostly class words where the picture has one, and the twelve of IconBed together in half of
        those questions that have one of them for an answer; else keywords, or, where ``whole``
        allows it, concepts.
        """
        known = [word for word in picture.words if word in self.words and word != picture.label]
        systems = (
            (["class"] * 6 if picture.label in classes.ICONBED else ["class"] * 2 if picture.label else [])
            + (["word"] if known else [])
            + (["concept"] if whole or not (known or picture.label) else [])
        )
        system = systems[random.integers(len(systems))]
        if system == "class":
            label, others = picture.label, classes.CLASSES
            if label in classes.ICONBED and random.random() < 0.6:
                options = list(classes.ICONBED)
                if random.random() < 0.5:
                    random.shuffle(options)
                if random.random() < 0.3:
                    kept = {label, *options[: random.integers(4, 12)]}
                    options = [option for option in options if option in kept]
                return label, options
        elif system == "word":
            label, others = known[random.integers(len(known))], self.words
        else:
            label, others = picture.concept, self.concepts
        chosen = {label}
        wanted = int(random.integers(4, 15)) if system != "concept" else int(random.integers(3, 9))
        while len(chosen) < wanted:
            other = others[random.integers(len(others))]
            if other not in picture.words and other not in (picture.concept, picture.label):
                chosen.add(other)
        options = sorted(chosen)
        if random.random() < 0.5:
            random.shuffle(options)
        return label, options

    def both(
        self, picture: Picture, image: np.ndarray, random: np.random.Generator
    ) -> tuple[str, str, str, str, str]:
        """Both pathways on one question: what their prompts share, and the rest and the answer of each."""
        label, options = self.classes(picture, random, whole=False)
        chain = write_chain(
            name=picture.concept,
            keywords=list(picture.words),
            label=label,
            options=options,
            image=Image.fromarray(image),
            seed=int(random.integers(2**31)),
        )
        direct, reasoning = direct_prompt(options), reasoning_prompt(options)
        shared = direct[: direct.index("\n")]
        return shared, direct[len(shared) :], label, reasoning[len(shared) :], chain

    def direct(self, picture: Picture, random: np.random.Generator) -> tuple[str, str]:
        """The direct pathway alone: question and answer."""
        label, options = self.classes(picture, random, whole=True)
        return direct_prompt(options), label

    def name(self, picture: Picture) -> tuple[str, str]:
        """The plain question for the name."""
        return NAME_QUESTION, picture.concept

    def corpus(self, pictures: list[Picture], views: np.ndarray, count: int, seed: int = 0) -> list[str]:
        """Texts for the tokenizer to learn from."""
        random = np.random.default_rng(seed)
        texts: list[str] = []
        for index in random.integers(len(pictures), size=count):
            picture = pictures[index]
            texts.extend(self.both(picture, views[picture.views[0]], random))
            texts.extend(self.direct(picture, random))
            texts.extend([*self.name(picture), ", ".join(picture.words)])
        return texts
