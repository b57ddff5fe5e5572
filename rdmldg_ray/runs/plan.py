"""What a run consists of: Algorithm 1 as a list of stages, and how many images each reads.

Imports neither torch nor ray, so that planning a run is instant.
"""

from dataclasses import dataclass
from typing import Literal

from rdmldg_ray.config.load import ConfigError
from rdmldg_ray.config.schema import Config, EnginesConfig
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.folds import fold_domains, plan_folds
from rdmldg_ray.domainbed.splits import split_indices

Kind = Literal["mtct", "generate", "train", "evaluate"]


@dataclass(frozen=True)
class Stage:
    """One step of Algorithm 1 for one held-out domain; ``name`` is also its folder below the run."""

    held_out: str
    """A fold: the held-out domain, or several joined by ``+``."""
    kind: Kind
    round: int
    """0 for MTCT and for evaluations before SARR, 1..N for SARR; -1 for zero-shot."""

    @property
    def model(self) -> str:
        """Which model the stage works with or makes: ``zero-shot``, ``mtct`` or ``sarr-<k>``."""
        return "zero-shot" if self.round < 0 else "mtct" if self.round == 0 else f"sarr-{self.round}"

    @property
    def name(self) -> str:
        if self.kind == "evaluate":
            return f"{self.held_out}/evaluation/{self.model}"
        folder = f"{self.held_out}/{self.model}"
        return f"{folder}/candidates" if self.kind == "generate" else folder


def keeps_engines(engines: EnginesConfig) -> bool:
    """Whether idle engines stay while a stage trains.

    An idle engine on CPU costs some memory and saves its start, half a minute; one on a GPU holds
    most of the memory that training needs.
    """
    keep = engines.keep_while_training
    return engines.gpus_per_engine == 0 if keep is None else keep


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
        kept, held = split_indices(info.size(domain), data.trial_seed, number, data.holdout_fraction)
        sizes[domain] = (len(kept), len(held))
    part = 1 if stage.kind == "evaluate" else 0
    held_out = fold_domains(stage.held_out)
    images = sum(size[part] for domain, size in sizes.items() if domain not in held_out)
    if stage.kind == "evaluate":
        images += sum(sum(sizes[domain]) for domain in held_out)
    return images
