"""What a run would do: its stages, how much there is to do in each, and what that would take."""

from dataclasses import dataclass

from rdmldg_ray.config.schema import Config
from rdmldg_ray.runs.estimate import Calibration, Estimate, estimate
from rdmldg_ray.runs.memory import RunMemory, run_memory
from rdmldg_ray.runs.run import Run


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
    return RunPlan(config, run.location, stages, estimated, run_memory(config))
