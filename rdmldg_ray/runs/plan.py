"""What a run consists of: Algorithm 1 as a list of stages, and how many images each reads.

Imports neither torch nor ray, so that planning a run is instant.
"""

from rdmldg_ray.config.load import ConfigError
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.folds import fold_domains, plan_folds
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.runs.store import Stage


def plan_stages(config: Config, info: DatasetInfo) -> list[Stage]:
    """All stages of a run in order.

    Raises:
        ConfigError: for a held-out domain that the data set does not have, no domain left to train on, or
            base classes of a data set without classes.
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
    stages = []
    for domain in folds:
        if config.evaluation.zero_shot:
            stages.append(Stage(domain, "evaluate", -1))
        stages += [Stage(domain, "mtct", 0), Stage(domain, "evaluate", 0)]
        for number in range(1, config.sarr.rounds + 1):
            stages += [Stage(domain, kind, number) for kind in ("generate", "train", "evaluate")]
    return stages


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
