"""What a sweep tries and how it judges: plain functions, without Ray."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rdmldg_ray.config.load import SPACES, ConfigError
from rdmldg_ray.config.parse import read_yaml
from rdmldg_ray.config.schema import Config, Pathway
from rdmldg_ray.runs.store import ZERO_SHOT, Stage, stages_of
from rdmldg_ray.sweeps.variants import sweep_config

_PROTOCOL = (
    "name",
    "storage",
    "seed",
    "data.held_out",
    "data.trial_seed",
    "data.holdout_fraction",
    "data.dataset",
)
"""What every trial of a sweep must share, or their scores would not compare."""


class Range(BaseModel):
    """Numbers between two bounds, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float
    max: float
    scale: Literal["linear", "log"] = "linear"
    integer: bool = False

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}")
        if self.scale == "log" and self.min <= 0:
            raise ValueError("a log scale needs a min above 0")
        return self


class SweepSpace(BaseModel):
    """A sweep, as its YAML file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: Literal["grid", "random", "optuna"] = "grid"
    trials: Annotated[int, Field(gt=0)] | None = Field(None, description="How many; not for a grid.")
    pathway: Pathway = Field("reasoning", description="The pathway whose validation accuracy is the score.")
    seed: int = 0
    early_stopping: bool = Field(
        False, description="End trials that fall behind after a fold or a round (ASHA)."
    )
    max_concurrent: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Trials at once; by default as many as the cluster has room for."
    )
    settings: dict[str, list[Any] | Range] = Field(
        min_length=1, description="By dotted path: values to choose from, or a range."
    )

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        ranges = [path for path, values in self.settings.items() if isinstance(values, Range)]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"a grid needs lists of values; {', '.join(ranges)}: give a list, or search: random"
            )
        if (self.trials is None) != (self.search == "grid"):
            raise ValueError(f"'trials' is for random and optuna, which need it (search: {self.search})")
        if self.early_stopping and "sarr.rounds" in self.settings:
            raise ValueError("early_stopping compares trials round by round; sarr.rounds cannot vary with it")
        for path, values in self.settings.items():
            if values == []:
                raise ValueError(f"{path}: no values to choose from")
        return self

    def num_trials(self) -> int:
        """How many trials the sweep has."""
        return self.trials or len(self.grid())

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the listed values, the last setting varying fastest."""
        lists = [values for values in self.settings.values() if isinstance(values, list)]
        return [dict(zip(self.settings, values, strict=True)) for values in itertools.product(*lists)]


def space_names() -> list[str]:
    """Names of the shipped spaces."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def load_space(space: str, config: Config) -> SweepSpace:
    """Read a space, by its shipped name or as a path to a YAML file, and check it against a config.

    Raises:
        ConfigError: for a missing file, a wrong key, or a value that the config would not take.
    """
    path = Path(space) if space.endswith((".yaml", ".yml")) else SPACES / f"{space}.yaml"
    if not path.is_file():
        names = ", ".join(space_names())
        raise ConfigError(f"no space '{space}'; there are: {names}; or give a path to a .yaml file")
    try:
        found = SweepSpace.model_validate(read_yaml(path.read_bytes(), str(path)))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("\n".join([f"{path} is not valid:", *lines])) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    check_space(found, config)
    return found


def check_space(space: SweepSpace, config: Config) -> None:
    """Check that the config takes every value: all combinations of a grid, else each value by itself.

    Raises:
        ConfigError: when it does not, or for a setting that all trials must share.
    """
    for path in space.settings:
        if path.startswith(("evaluation.", *_PROTOCOL)):
            raise ConfigError(f"settings: '{path}' must be the same in all trials; set it in the recipe")
    if space.search == "grid":
        trials = space.grid()
    else:
        trials = [
            {path: value}
            for path, values in space.settings.items()
            for value in (values if isinstance(values, list) else _bounds(values))
        ]
    for settings in trials:
        sweep_config(config, settings)
    if space.pathway not in config.evaluation.pathways:
        raise ConfigError(f"pathway: evaluation.pathways of the recipe has no '{space.pathway}'")


def _bounds(values: Range) -> list[float]:
    return [int(bound) if values.integer else bound for bound in (values.min, values.max)]


def score(state: Mapping[str, Mapping[str, Any]], pathway: str) -> float | None:
    """A trial's score: of each fold the best validation accuracy of a trained model, and their mean.

    That is DomainBed's training-domain validation: the accuracy on the ``out`` parts of the fold's
    source domains. What the target domain scored is never looked at.

    Args:
        state: of the trial's run, complete or not; folds without an evaluation do not count yet.
    """
    best: dict[str, float] = {}
    for stage in _trained_evaluations(state):
        validation = state[stage.name]["accuracy"][pathway]["validation"]
        best[stage.held_out] = max(best.get(stage.held_out, 0.0), validation)
    return math.fsum(best.values()) / len(best) if best else None


def count_evaluations(state: Mapping[str, Any]) -> int:
    """Evaluations of trained models that are complete: how far a trial is, for early stopping."""
    return len(_trained_evaluations(state))


def _trained_evaluations(state: Mapping[str, Any]) -> list[Stage]:
    return [stage for stage in stages_of(state, "evaluate") if stage.model != ZERO_SHOT]


def trial_row(
    run: str, settings: Mapping[str, Any], state: Mapping[str, Mapping[str, Any]], pathway: str, status: str
) -> dict[str, Any]:
    """A trial as a row of the sweep's table.

    ``computed`` and ``shared`` count its stages by whether it computed them or took them over;
    ``drawn`` counts the chains that engines drew for it.
    """
    rounds = [state[stage.name] for stage in stages_of(state, "generate")]
    shared = [entry for entry in state.values() if "shared" in entry]
    return {
        "trial": run,
        **settings,
        "score": score(state, pathway),
        "status": status,
        "computed": len(state) - len(shared),
        "shared": len(shared),
        "drawn": sum(entry.get("drawn_anew", entry["candidates"]) for entry in rounds),
        "seconds": round(sum(entry["seconds"] for entry in state.values()), 1),
    }


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by score, the best first, those without one last."""
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0), row["trial"]))


def coordinates(rows: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[list[float]]:
    """Rows with a score as numbers for a picture: settings, then the score in percent.

    A setting whose values are not all numbers is numbered by the order of its values, none first.
    """
    scored = [row for row in rows if row["score"] is not None]
    columns = []
    for path in settings:
        values = [row[path] for row in scored]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            order = sorted(dict.fromkeys(map(_ordered, values)))
            values = [order.index(_ordered(value)) for value in values]
        columns.append([float(value) for value in values])
    columns.append([100 * row["score"] for row in scored])
    return [list(row) for row in zip(*columns, strict=True)]


def _ordered(value: Any) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))
