"""What a run would do: its stages, how much there is to do in each, and what that would take."""

from collections.abc import Iterator
from dataclasses import dataclass

from rdmldg_ray.chains.store import chain_files
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import chains_location, info_location
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.models.folder import check_base_model
from rdmldg_ray.runs.estimate import Calibration, Estimate, estimate
from rdmldg_ray.runs.memory import RunMemory, run_memory
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import Stage
from rdmldg_ray.storage import exists


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run.

    Attributes:
        images, steps: for a round's training the most that there can be, since what it trains on is known
            when its chains are.
        steps: of the optimizer; None where nothing is trained.
    """

    name: str
    images: int
    steps: int | None
    complete: bool
    at_most: bool


@dataclass(frozen=True)
class RunPlan:
    """A run before it is run, or continued."""

    config: Config
    location: str
    stages: list[PlannedStage]
    estimate: list[Estimate] | None
    """By kind of stage; None without a calibration."""
    memory: RunMemory | None
    """None without GPUs, and before the model's ``config.json`` is here."""
    notes: list[str]
    """What is not here, and has to be where the run is started."""


def plan_run(run: Run, rates: Calibration | None = None) -> RunPlan:
    """The plan of a run; writes nothing.

    Raises:
        ConfigError: when the run exists with other settings.
    """
    run.check_settings()
    remaining = run.remaining()
    stages = []
    for stage in run.stages:
        images, steps = run.workload(stage)
        complete, at_most = stage not in remaining, stage.kind == "train"
        stages.append(PlannedStage(stage.name, images, steps, complete=complete, at_most=at_most))
    config, info = run.config, run.info
    estimated = estimate(config, info, rates, run.state()) if rates else None
    return RunPlan(config, run.location, stages, estimated, run_memory(config), list(_notes(run, remaining)))


def _notes(run: Run, remaining: list[Stage]) -> Iterator[str]:
    config, info = run.config, run.info
    try:
        if config.model.path != "tiny":
            check_base_model(config.model.path)
    except ValueError as error:
        yield str(error)
    trained = [stage.held_out for stage in remaining if stage.kind == "mtct"]
    if config.mtct.weights.reasoning > 0 and exists(info_location(config.storage, info.name)):
        teacher = config.data.chains
        lacking = [
            domain
            for domain in info.environments
            if any(domain not in fold_domains(held_out) for held_out in trained)
            and not chain_files(config.storage, info.name, teacher, [domain])
        ]
        if lacking:
            yield (
                f"{chains_location(config.storage, info.name, teacher)}: no chains for {', '.join(lacking)}; "
                "choose another teacher (data.chains), or import or write chains for them"
            )
