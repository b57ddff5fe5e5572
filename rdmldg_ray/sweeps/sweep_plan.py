"""What a sweep would do: plain functions, without Ray."""

from dataclasses import dataclass
from itertools import product

from rich.console import Console

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.cache_key import count_shared
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import Kind
from rdmldg_ray.runtime.lease import LEASE_FILE, Lease
from rdmldg_ray.storage import join
from rdmldg_ray.sweeps.space import SweepSpace
from rdmldg_ray.sweeps.variants import sweep_config


@dataclass(frozen=True)
class SweepPlan:
    """A sweep before it is run.

    Attributes:
        stages: how many a trial has.
        shared: by kind of stage how many all trials have, and how many of them are computed, the others being
            shared; None for a search that is no grid, whose trials are not known before.
    """

    config: Config
    space: SweepSpace
    stages: int
    shared: dict[Kind, tuple[int, int]] | None


def plan_sweep(config: Config, info: DatasetInfo, space: SweepSpace) -> SweepPlan:
    """The plan of a sweep; writes nothing."""
    shared = None
    if space.search == "grid":
        trials = [sweep_config(config, settings) for settings in space.grid()]
        shared = count_shared(trials, info)
    return SweepPlan(config, space, len(plan_stages(config, info)), shared)


def check_chains(config: Config, info: DatasetInfo, space: SweepSpace, console: Console) -> None:
    """Read index and chains as the trials will, so that a mistake in them ends a sweep at once.

    Raises:
        ValueError: as ``Run.check_chains``.
    """
    read = {
        path: values
        for path, values in space.settings.items()
        if path.startswith("data.") and isinstance(values, list)
    }
    for values in product(*read.values()):
        trial = sweep_config(config, dict(zip(read, values, strict=True)))
        Run(config=trial, info=info, console=console).check_chains()


def sweep_location(config: Config) -> str:
    """Where a sweep lies: it has the recipe's name."""
    return join(config.storage, "sweeps", config.name)


def sweep_lease(config: Config, console: Console) -> Lease:
    """The lease of a sweep as a whole: its trials share stages through what one command keeps in memory."""
    watch = f"rdmldg report '{config.name}-*' --storage {config.storage}"
    return Lease(join(sweep_location(config), LEASE_FILE), f"sweep '{config.name}'", watch, console)
