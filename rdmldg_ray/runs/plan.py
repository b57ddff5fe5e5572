"""What a run consists of: Algorithm 1 as a list of stages, and how many images each reads.

Imports neither torch nor ray, so that planning a run is instant.
"""

import math

from rdmldg_ray.config.load import ConfigError
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.folds import fold_domains, plan_folds
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.runs.store import Stage


def plan_stages(config: Config, info: DatasetInfo) -> list[Stage]:
    """All stages of a run in order.

    Raises:
        ConfigError: for a held-out domain that the data set does not have, no domain left to train on, a
            domain too small to be split, or base classes of a data set without classes.
    """
    try:
        folds = plan_folds(config.data.held_out, info.environments)
    except ValueError as error:
        raise ConfigError(f"data.held_out: {info.name} has {error}") from None
    if info.questions and config.data.classes == "base":
        raise ConfigError(
            f"data.classes: 'base' is half of a list of classes, and in {info.name} each sample has options "
            "of its own; set it to 'all'"
        )
    _check_splits(config, info)
    return [stage for domain in folds for stage in fold_stages(config, domain)]


def fold_stages(config: Config, held_out: str) -> list[Stage]:
    """The stages of one fold in order."""
    stages = [Stage(held_out, "evaluate", -1)] if config.evaluation.zero_shot else []
    stages += [Stage(held_out, "mtct", 0), Stage(held_out, "evaluate", 0)]
    for number in range(1, config.sarr.rounds + 1):
        stages += [Stage(held_out, kind, number) for kind in ("generate", "train", "evaluate")]
    return stages


def _check_splits(config: Config, info: DatasetInfo) -> None:
    """Every domain is trained on or tested on in one split and validated on in the other."""
    fraction = config.data.holdout_fraction
    lines = []
    for number, domain in enumerate(info.environments):
        size = info.size(domain)
        inside, outside = split_indices(size, config.data.trial_seed, number, fraction)
        if not inside or not outside:
            least = f"at least {math.ceil(1e4 / size) / 1e4:g}" if size > 1 else "a data set with more images"
            lines.append(f"  {domain}: {fraction:g} of {size} images leaves none; {least}")
    if lines:
        raise ConfigError(
            "\n".join([f"data.holdout_fraction: {info.name} has domains that it does not split:", *lines])
        )


def count_samples(config: Config, info: DatasetInfo, stage: Stage) -> int:
    """Images that a stage reads; for a round's training an upper bound, since the filter decides, and so
    wherever only the base classes are read."""
    data = config.data
    sizes = {}
    for number, domain in enumerate(info.environments):
        inside, outside = split_indices(info.size(domain), data.trial_seed, number, data.holdout_fraction)
        sizes[domain] = (len(inside), len(outside))
    part = 1 if stage.kind == "evaluate" else 0
    held_out = fold_domains(stage.held_out)
    images = sum(size[part] for domain, size in sizes.items() if domain not in held_out)
    if stage.kind == "evaluate":
        images += sum(sum(sizes[domain]) for domain in held_out)
    return images
