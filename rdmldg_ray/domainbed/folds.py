"""Folds: which domains a run of the method holds out together.

A fold's name is its domains' names, in the data set's order, joined by ``+``: ``sketch``, ``art+sketch``.
"""

from collections.abc import Sequence
from itertools import combinations

SEPARATOR = "+"

_SIZES = {"all": lambda n: 1, "pairs": lambda n: 2, "single-source": lambda n: n - 1}
"""Words for many folds: how many of n domains each of them holds out."""

WORDS = tuple(_SIZES)


def fold_domains(fold: str) -> list[str]:
    """The domains that a fold holds out."""
    return fold.split(SEPARATOR)


def plan_folds(held_out: Sequence[str], environments: Sequence[str]) -> list[str]:
    """The folds that a setting asks for, each once, in the order given.

    Args:
        held_out: names of domains, several joined by ``+`` to be held out together, or words: ``all``
            holds every domain out in turn, ``pairs`` every two (what leave-one-domain-out
            cross-validation needs beside ``all``), ``single-source`` all but one, so that the method
            trains on a single domain.
        environments: all domains, in the data set's order.

    Raises:
        ValueError: for a domain that is not there, or a fold without a source domain.
    """
    folds: list[str] = []
    for named in held_out:
        if named in _SIZES:
            size = _SIZES[named](len(environments))
            folds += [SEPARATOR.join(domains) for domains in combinations(environments, size)]
        else:
            domains = set(fold_domains(named))
            if unknown := sorted(domains - set(environments)):
                raise ValueError(f"no domain '{unknown[0]}'; it has: {', '.join(environments)}")
            folds.append(SEPARATOR.join(domain for domain in environments if domain in domains))
    for fold in folds:
        if len(fold_domains(fold)) == len(environments):
            raise ValueError(f"no domain left to train on when '{fold}' is held out; hold fewer out")
    return list(dict.fromkeys(folds))
