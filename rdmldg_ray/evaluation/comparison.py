"""Whether one model answers better than another: both asked about the same images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Comparison:
    """How much more often one model is right than another.

    Attributes:
        difference: of the accuracies, as a share; the mean over held-out domains.
        error: its standard error over images.
        p: probability of so large a difference, either way, between equally good models.
        images: how many were compared.
    """

    difference: float
    error: float
    p: float
    images: int


def compare(ours: Mapping[str, Sequence[pa.Table]], theirs: Mapping[str, Sequence[pa.Table]]) -> Comparison:
    """Compare two models by a paired z-test over images.

    An image's difference is the mean over the trials that have it, so that trials do not count as more
    images. The error is of the choice of images; how much trainings of other seeds differ it does not tell.

    Args:
        ours: by held-out domain, a pathway's predictions on it in each trial, with ``id`` and ``correct``.
        theirs: the same of the other model, for the same images.

    Raises:
        ValueError: when the images differ, or a domain has less than two.
    """
    differences, variances, images = [], [], 0
    for domain in ours:
        by_image: dict[str, list[float]] = {}
        for mine, other in zip(ours[domain], theirs[domain], strict=True):
            right = dict(zip(other["id"].to_pylist(), other["correct"].to_pylist(), strict=True))
            ids = mine["id"].to_pylist()
            if set(ids) != right.keys():
                raise ValueError(f"{domain}: the models were not asked about the same images")
            for sample_id, correct in zip(ids, mine["correct"].to_pylist(), strict=True):
                by_image.setdefault(sample_id, []).append(float(correct) - float(right[sample_id]))
        if len(by_image) < 2:
            raise ValueError(f"{domain}: {len(by_image)} images are too few to compare models on")
        values = np.array([np.mean(found) for found in by_image.values()])
        differences.append(values.mean())
        variances.append(values.var(ddof=1) / len(values))
        images += len(values)
    difference = float(np.mean(differences))
    error = math.sqrt(sum(variances)) / len(variances)
    # A difference without any spread is either none or every image's.
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    return Comparison(difference, error, p, images)
