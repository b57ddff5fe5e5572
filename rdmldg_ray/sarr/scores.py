"""Scores of a candidate that need no model: how much it repeats itself, and whether others agree."""

import sys
from collections import Counter
from collections.abc import Iterable

from rdmldg_ray.chains.format import TAGS, normalize_answer

_NGRAM = 4


def repetition(text: str) -> float:
    """The share of a text's 4-grams of words that are repeats of earlier ones, from 0 to below 1.

    This is seq-rep-4 of Welleck et al. 2019 (arXiv 1908.04319), on words instead of tokens and
    without the stage tags: 1 minus the number of distinct 4-grams over the number of all. A text
    that runs in a loop comes near 1 whatever the length of the loop.
    """
    for tag in TAGS:
        text = text.replace(tag, " ")
    words = text.casefold().split()
    ngrams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class Agreement:
    """Counts, over a round, what the candidates of each image conclude."""

    def __init__(self) -> None:
        self._drawn: Counter[str] = Counter()
        self._same: Counter[tuple[str, str | None]] = Counter()

    def count(self, ids: Iterable[str], conclusions: Iterable[str | None]) -> None:
        """Take in some candidates, by their image's id and their conclusion."""
        for sample_id, conclusion in zip(ids, conclusions, strict=True):
            # Each id and class in memory once, however many candidates have them.
            sample_id = sys.intern(sample_id)
            self._drawn[sample_id] += 1
            self._same[sample_id, _folded(conclusion)] += 1

    def share(self, sample_id: str, conclusion: str | None) -> float:
        """The share of an image's candidates that conclude so; 0 for a candidate without a conclusion."""
        if conclusion is None:
            return 0.0
        return self._same[sample_id, _folded(conclusion)] / self._drawn[sample_id]


def _folded(conclusion: str | None) -> str | None:
    return None if conclusion is None else sys.intern(normalize_answer(conclusion))
