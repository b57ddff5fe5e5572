"""How far a run is, from its storage alone: the same from any machine that reads it."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.plan import fold_stages, plan_stages
from rdmldg_ray.runs.results import RunResults, read_run
from rdmldg_ray.runs.store import Stage
from rdmldg_ray.runtime.lease import Holder
from rdmldg_ray.runtime.progress import PROGRESS_FILE
from rdmldg_ray.storage import exists, join, read_json

# Progress is written every second; one that is older tells of a run that was ended or waits.
QUIET_S = 60.0


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run.

    Attributes:
        done, total, text: what the stage last said of itself.
        seconds: it took, when complete.
        eta_s: seconds until it is done, when running.
        quiet_s: since it last said something, when running.
    """

    name: str
    status: Literal["complete", "running", "waiting"]
    seconds: float | None = None
    done: int | None = None
    total: int | None = None
    text: str = ""
    eta_s: float | None = None
    quiet_s: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """A whole run.

    Attributes:
        eta_s: seconds until it is done; None while some kind of stage has not been seen yet.
        holders: who works on which fold, or did when it was killed.
    """

    name: str
    location: str
    complete: bool
    stages: list[StageStatus]
    eta_s: float | None
    holders: dict[str, Holder]


def run_status(root: str, name: str) -> RunStatus:
    """The status of a run of a name.

    Raises:
        StorageError: when there is none.
    """
    run = read_run(root, name)
    stages = planned_stages(run)
    remaining = [stage for stage in stages if stage.name not in run.state]
    current = remaining[0] if remaining else None
    holders = {fold: run.store.holder(fold) for fold in dict.fromkeys(stage.held_out for stage in remaining)}
    found = [_stage_status(run, stage, stage == current) for stage in stages]
    return RunStatus(
        name=name,
        location=run.location,
        complete=not remaining,
        stages=found,
        eta_s=_eta(stages, found, run.state),
        holders={fold: holder for fold, holder in holders.items() if holder},
    )


def planned_stages(run: RunResults) -> list[Stage]:
    """The stages of a run; without its data set those of the folds that it has begun."""
    try:
        # Runs are copied from place to place; the data set is where the run is.
        return plan_stages(run.config, read_dataset_info(run.root, run.config.data.dataset))
    except ValueError:
        folds = run.store.in_planned_order({stage.held_out for stage in run.stages()})
        if not folds:
            raise
        return [stage for held_out in folds for stage in fold_stages(run.config, held_out)]


def _stage_status(run: RunResults, stage: Stage, current: bool) -> StageStatus:
    if stage.name in run.state:
        return StageStatus(stage.name, "complete", seconds=run.state[stage.name]["seconds"])
    file = join(run.store.stage_uri(stage), PROGRESS_FILE)
    if not current or not exists(file):
        return StageStatus(stage.name, "waiting")
    try:
        progress = read_json(file)
        return StageStatus(
            stage.name,
            "running",
            done=int(progress["done"]),
            total=int(progress["total"]),
            text=str(progress["text"]),
            eta_s=None if progress.get("eta_s") is None else float(progress["eta_s"]),
            quiet_s=max(0.0, time.time() - float(progress["written"])) if "written" in progress else None,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Only what the stage says of itself; it is written anew with the next step.
        told = " ".join(str(error).split())
        return StageStatus(stage.name, "running", text=f"{file} cannot be read ({told})")


def _eta(stages: list[Stage], found: list[StageStatus], state: dict[str, Any]) -> float | None:
    """Seconds until the run is done: what remains takes as long as its like in other folds did."""
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for stage in stages:
        if stage.name in state:
            seen[stage.kind, stage.model].append(state[stage.name]["seconds"])
    total = 0.0
    for stage, status in zip(stages, found, strict=True):
        like = seen[stage.kind, stage.model]
        if status.eta_s is not None:
            total += status.eta_s
        elif status.status != "complete":
            if not like:
                return None
            total += sum(like) / len(like)
    return total
