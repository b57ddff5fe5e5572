"""How DomainBed splits an environment, number for number.

The protocol is DomainBed's (Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization",
arXiv 2007.01434): published tables are comparable only when every environment is split as there. Each
environment, whether source or target, is cut into a small `out` part and the rest, the `in` part.
"""

import hashlib

import numpy as np

HOLDOUT_FRACTION = 0.2


def seed_hash(*args: object) -> int:
    """DomainBed's seed from anything printable: the MD5 of the arguments' tuple, in 0..2**31-1."""
    digest = hashlib.md5(str(args).encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def split_indices(
    size: int, trial_seed: int, env_index: int, holdout_fraction: float = HOLDOUT_FRACTION
) -> tuple[list[int], list[int]]:
    """The `in` and the `out` part of an environment, as positions in ImageFolder order.

    Args:
        size: how many samples the environment has.
        trial_seed: DomainBed's trial, 0, 1 and 2 in published tables.
        env_index: the environment's place in the sorted order of *all* environments of the data set,
            the target's included: leaving another one out must not change a split.
        holdout_fraction: the share of the `out` part, rounded down to whole samples.

    Raises:
        ValueError: for a negative size, or a fraction outside of 0..1.
    """
    if size < 0 or not 0 <= holdout_fraction <= 1:
        raise ValueError(f"cannot hold out {holdout_fraction} of {size} samples; use a fraction in 0..1")
    keys = list(range(size))
    # The legacy generator, shuffling a list: another generator, or an array, gives another order.
    np.random.RandomState(seed_hash(trial_seed, env_index)).shuffle(keys)
    n = int(size * holdout_fraction)
    return keys[n:], keys[:n]
