"""A run as it lies on storage, read for people to look at: complete or not, one fold or many."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.load import parse_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.report.tables import State, held_out_domains, models
from rdmldg_ray.runtime.versions import VERSIONS_FILE
from rdmldg_ray.storage import StorageError, exists, join, list_entries, read_bytes, read_json, read_table


@dataclass(frozen=True)
class RunResults:
    """What a run has written so far."""

    name: str
    root: str
    config: Config
    state: State
    files: dict[str, int]
    """Everything below the run's folder, with its size in bytes."""

    @property
    def location(self) -> str:
        return join(self.root, "runs", self.name)

    @property
    def held_out(self) -> list[str]:
        return held_out_domains(self.state)

    def models(self, held_out: str) -> list[str]:
        return models(self.state, held_out)

    def accuracy(self, held_out: str, model: str) -> dict[str, dict[str, float]]:
        """Shares of right answers by pathway, then by ``target_in``, ``target_all`` and ``validation``."""
        return self.state[f"{held_out}/evaluation/{model}"]["accuracy"]

    def read(self, *path: str) -> bytes | None:
        """A file of the run; None when it is not there."""
        location = join(self.location, *path)
        return read_bytes(location) if location in self.files else None

    def stage_bytes(self, stage: str) -> int:
        """What a stage left; a round's candidates are a stage of their own below its training."""
        folder = f"{join(self.location, stage)}/"
        inner = f"{folder}candidates/"
        mine = [file for file in self.files if file.startswith(folder) and not file.startswith(inner)]
        return sum(self.files[file] for file in mine)

    def predictions(self, held_out: str, model: str) -> pa.Table:
        """In ``evaluation.predict.PREDICTION_SCHEMA``."""
        return read_table(join(self.location, held_out, "evaluation", model, "predictions.parquet"))

    def rounds(self, held_out: str) -> list[str]:
        """Rounds whose candidates are complete: ``sarr-1``, ..."""
        parts = [name.split("/") for name in self.state if name.endswith("/candidates")]
        return [part[1] for part in parts if part[0] == held_out]

    def rejections(self, held_out: str, model: str) -> pa.Table | None:
        """In ``sarr.selection.REJECTION_SCHEMA``; None where a run did not leave them."""
        location = join(self.location, held_out, model, "rejections.parquet")
        return read_table(location) if location in self.files else None

    def candidates(self, held_out: str, model: str) -> pa.Table:
        """In ``sarr.candidates.CANDIDATE_SCHEMA``."""
        return read_table(join(self.location, held_out, model, "candidates"))

    def metrics(self) -> dict[str, list[dict[str, float | None]]]:
        """Training metrics by stage, ``<held-out domain>/<model>``, a row for each step."""
        found = {}
        for file in sorted(self.files):
            if file.endswith("/metrics.jsonl"):
                stage = "/".join(file.split("/")[-3:-1])
                found[stage] = [json.loads(line) for line in read_bytes(file).splitlines()]
        return found

    def versions(self) -> dict[str, str]:
        """Versions of the packages that the run was started with; empty for older runs."""
        data = self.read(VERSIONS_FILE)
        return json.loads(data) if data else {}


def read_run(root: str, name: str) -> RunResults:
    """A run of a name.

    Raises:
        StorageError: when there is none.
    """
    location = join(root, "runs", name)
    if not exists(join(location, "config.yaml")):
        raise StorageError(f"{location}: no run here; correct the run's name, or --storage")
    config = parse_config(read_bytes(join(location, "config.yaml")).decode())
    state_file = join(location, "state.json")
    state = read_json(state_file) if exists(state_file) else {}
    files = {entry.location: entry.size for entry in list_entries(location)}
    return RunResults(name, root, config, state, files)


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
