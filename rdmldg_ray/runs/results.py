"""What a run has left on storage, complete or not, one fold or many."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.records import RECORD_COLUMNS, make_records
from rdmldg_ray.evaluation.predictions import read_predictions
from rdmldg_ray.runs.store import (
    Kind,
    RunStore,
    Stage,
    State,
    accuracies_of,
    damage_told,
    evaluated_folds,
    evaluated_models,
    model_round,
    stages_of,
)
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.sarr.selection import REJECTION_SCHEMA
from rdmldg_ray.storage import folder_prefix, list_entries, read_bytes, read_table, write_bytes


@dataclass(frozen=True)
class RunResults:
    """What a run has written so far."""

    store: RunStore
    config: Config
    state: State
    files: dict[str, int]
    """Everything below the run's folder, with its size in bytes."""

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def root(self) -> str:
        return self.store.root

    @property
    def location(self) -> str:
        return self.store.uri

    @property
    def held_out(self) -> list[str]:
        """Folds that have an evaluation."""
        return evaluated_folds(self.state)

    def models(self, held_out: str) -> list[str]:
        """Models that were evaluated for a fold: ``zero-shot``, ``mtct``, ``sarr-1``, ..."""
        return evaluated_models(self.state, held_out)

    def accuracy(self, held_out: str, model: str) -> dict[str, dict[str, float]]:
        """Shares of right answers by pathway, then by ``target_in``, ``target_all`` and ``validation``.

        Raises:
            ValueError: for a fold or model that was not evaluated.
        """
        found = accuracies_of(self.state, held_out, model)
        if not found:
            known = ", ".join(f"{fold} ({', '.join(self.models(fold))})" for fold in self.held_out)
            raise ValueError(f"run '{self.name}': no evaluation of {model} for {held_out}; there is: {known}")
        return found

    def read(self, location: str) -> bytes | None:
        """A file of the run; None when it is not there."""
        return read_bytes(location) if location in self.files else None

    def stage_bytes(self, name: str) -> int:
        """What a stage left; a round's candidates are a stage of their own below its training."""
        folder = f"{self.store.stage_uri(Stage.parse(name))}/"
        stage = Stage.parse(name)
        inner = (
            f"{self.store.candidates_uri(stage.held_out, stage.model)}/" if stage.kind == "train" else None
        )
        mine = [f for f in self.files if f.startswith(folder) and not (inner and f.startswith(inner))]
        return sum(self.files[file] for file in mine)

    def predictions(self, held_out: str, model: str) -> pa.Table:
        """In ``evaluation.predictions.PREDICTION_SCHEMA``.

        Raises:
            ValueError: when the file is missing or damaged; so do those below.
        """
        location = self.store.predictions_uri(held_out, model)
        with damage_told(location, self._redo("evaluate", held_out, model)):
            return read_predictions(location)

    def rounds(self, held_out: str) -> list[str]:
        """Rounds whose candidates are complete: ``sarr-1``, ..."""
        return [stage.model for stage in stages_of(self.state, "generate", held_out)]

    def rejections(self, held_out: str, model: str) -> pa.Table | None:
        """In ``sarr.selection.REJECTION_SCHEMA``; None where a run did not leave them."""
        location = self.store.rejections_uri(held_out, model)
        with damage_told(location, self._redo("generate", held_out, model)):
            return read_table(location, schema=REJECTION_SCHEMA) if location in self.files else None

    def candidates(self, held_out: str, model: str) -> pa.Table:
        """In ``sarr.candidates.CANDIDATE_SCHEMA``."""
        location = self.store.candidates_uri(held_out, model)
        with damage_told(location, self._redo("generate", held_out, model)):
            return read_candidates(location)

    def metrics(self) -> dict[str, list[dict[str, float | None]]]:
        """Training metrics by stage, ``<held-out domain>/<model>``, a row for each step."""
        found = {}
        for stage in self.stages():
            location = self.store.metrics_uri(stage.held_out, stage.model)
            data = self.read(location)
            if stage.kind in ("mtct", "train") and data is not None:
                with damage_told(location, self._redo(stage.kind, stage.held_out, stage.model)):
                    found[stage.name] = [_step(line) for line in data.splitlines()]
        return found

    def versions(self) -> dict[str, str]:
        """Versions of the packages that the run was started with; empty for older runs."""
        data = self.read(self.store.versions_uri)
        if data is None:
            return {}
        with damage_told(self.store.versions_uri, "restore it, or delete it, which loses that record alone"):
            return dict(json.loads(data).items())

    def _redo(self, kind: Kind, held_out: str, model: str) -> str:
        return self.store.redo_remedy(Stage(held_out, kind, model_round(model)))

    def stages(self) -> list[Stage]:
        """Stages that have left files, complete or not: fold by fold in the order of the plan."""
        prefix = folder_prefix(self.location)
        found = set()
        for name in {file.removeprefix(prefix).rpartition("/")[0] for file in self.files}:
            # A stage's files lie in its folder or below.
            parts = name.split("/")
            for length in range(2, len(parts) + 1):
                with suppress(ValueError):  # other folders than a stage's
                    found.add(Stage.parse("/".join(parts[:length])))
        kinds = ("mtct", "generate", "train", "evaluate")
        folds = self.store.in_planned_order({stage.held_out for stage in found})
        return sorted(found, key=lambda s: (folds.index(s.held_out), s.round, kinds.index(s.kind)))


def _step(line: bytes) -> dict[str, float | None]:
    """A line of a training's metrics."""
    step: dict[str, float | None] = json.loads(line)
    if not isinstance(step, dict) or not isinstance(step.get("step"), int | float):
        raise ValueError(f"{line[:40]!r} is no step of a training")
    return step


def read_run(root: str, name: str) -> RunResults:
    """A run of a name.

    Raises:
        StorageError: when there is none.
    """
    store = RunStore(root, name)
    config = store.read_config()
    files = {entry.location: entry.size for entry in list_entries(store.uri)}
    return RunResults(store, config, store.state(), files)


def write_results(
    store: RunStore, config: Config, environments: Sequence[str], newest: Stage | None = None
) -> None:
    """Write a run's ``results.jsonl`` from its predictions, replacing it whole.

    Args:
        environments: of the data set.
        newest: an evaluation whose predictions are written and that is not entered as complete yet.
    """
    lines = []
    evaluated = stages_of(store.state(), "evaluate")
    for stage in [*evaluated, *([newest] if newest and newest not in evaluated else [])]:
        location = store.predictions_uri(stage.held_out, stage.model)
        with damage_told(location, store.redo_remedy(stage)):
            predictions = read_predictions(location, RECORD_COLUMNS)
        records = make_records(
            predictions=predictions,
            config=config,
            environments=environments,
            model=stage.model,
            step=stage.round + 1,
        )
        lines += [json.dumps(record) for record in records]
    write_bytes(store.results_uri, "".join(f"{line}\n" for line in lines).encode())


def rejected_by_round(state: State) -> list[dict[str, Any]]:
    """Share of the model's own chains that the filter rejected, and of images left without one.

    Returns:
        ``held_out``, ``round``, ``candidates``, ``rejected``, ``without_chain`` (shares).
    """
    rows = []
    for stage in stages_of(state, "generate"):
        entry = state[stage.name]
        try:
            rows.append(
                {
                    "held_out": stage.held_out,
                    "round": stage.round,
                    "candidates": entry["candidates"],
                    "rejected": 1 - entry["accepted"] / entry["candidates"],
                    "without_chain": 1 - entry["images_with_chain"] / entry["images"],
                }
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(
                f"the state.json of {stage.held_out} lacks what {stage.name} counted ({error!r}); restore "
                "it, or remove the stage from it and run again"
            ) from None
    return rows


def confusion(predictions: pa.Table, classes: Sequence[str]) -> list[list[int]]:
    """Counts by label (row) and prediction (column); the last column is for answers that name no class."""
    place = {name: number for number, name in enumerate(classes)}
    counts = [[0] * (len(classes) + 1) for _ in classes]
    for row in predictions.select(["label", "prediction"]).to_pylist():
        counts[place[row["label"]]][place.get(row["prediction"], len(classes))] += 1
    return counts


def on_target(predictions: pa.Table, pathway: str) -> pa.Table:
    """A pathway's predictions on the held-out domain."""
    return predictions.filter(pc.field("held_out") & (pc.field("pathway") == pathway))


def config_differences(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings by dotted path in which some runs differ, with each run's value.

    Args:
        configs: flat settings by run.
    """
    keys = dict.fromkeys(key for flat in configs.values() for key in flat)
    values = {key: {run: flat.get(key) for run, flat in configs.items()} for key in keys}
    return {
        key: by_run
        for key, by_run in values.items()
        if key != "name" and len({json.dumps(value) for value in by_run.values()}) > 1
    }
