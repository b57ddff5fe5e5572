"""What a run left, and how it differs from what another left."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load

from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import join, list_files, read_bytes, read_table

TOLERANCE = 1e-5
# Each table and the columns that name a row once.
_TABLES = {
    r"/candidates/": ("id", "candidate"),
    r"/selected/": ("id",),
    r"/training_set\.parquet$": ("id",),
    r"/predictions\.parquet$": ("id", "pathway"),
    r"/rejections\.parquet$": ("domain", "label", "reason"),
}
_DOCUMENTS = r"/(metrics\.json|results\.jsonl)$"
# Of a stage's entry, what depends on the machine and on what has been lost.
_OF_THE_DAY = ("seconds", "loading", "loading_s")
# Of metrics.jsonl, what does not.
_STEP = ("step", "epoch", "loss_direct", "loss_reasoning", "learning_rate", "tokens")


@dataclass
class Outcome:
    """What is to be the same, whatever happened on the way."""

    stages: dict[str, Any]
    """What the state says of each, without seconds and whether engines had to be started anew."""
    tables: dict[str, dict[str, Any]]
    """Rows by folder or file and by the columns that name them."""
    doubled: list[str]
    """Rows that are there more than once."""
    steps: dict[str, list[dict[str, Any]]]
    documents: dict[str, list[Any]]
    """What the JSON files of accuracies say, by file and line."""
    weights: dict[str, dict[str, list[float]]]
    """By adapter: of each tensor the norm and, in proportion to it, the sum."""
    files: Counter[str]
    resumed_at: dict[str, list[int]]
    """By training stage: the steps from which it was taken up. Not compared."""


def read_outcome(root: str, name: str) -> Outcome:
    """What a complete run has left."""
    store = RunStore(root, name)
    run = store.uri
    files = [file.removeprefix(run) for file in list_files(run)]
    stages = {
        name: {key: value for key, value in entry.items() if key not in _OF_THE_DAY}
        for name, entry in store.state().items()
    }
    tables: dict[str, dict[str, Any]] = {}
    doubled: list[str] = []
    for pattern, key in _TABLES.items():
        for place in sorted({_place(file, pattern) for file in files if re.search(pattern, file)}):
            rows = tables[place] = {}
            for row in read_table(join(run, place)).to_pylist():
                name = " ".join(str(row[column]) for column in key)
                if name in rows:
                    doubled.append(f"{place}: {name}")
                rows[name] = row
    logs = {
        file: [json.loads(line) for line in read_bytes(run + file).decode().splitlines()]
        for file in files
        if file.endswith("metrics.jsonl")
    }
    return Outcome(
        stages,
        tables,
        doubled,
        {file: [{name: step[name] for name in _STEP} for step in log] for file, log in logs.items()},
        {file: _documents(read_bytes(run + file)) for file in files if re.search(_DOCUMENTS, file)},
        {file: _weights(read_bytes(run + file)) for file in files if file.endswith(".safetensors")},
        Counter(name for name in map(_plain_name, files) if name),
        {file: sorted({step["resumed_at"] for step in log} - {0}) for file, log in logs.items()},
    )


def differences(ours: Outcome, theirs: Outcome) -> list[str]:
    """In what ``ours`` is not as ``theirs``; numbers may differ by ``TOLERANCE``, absolute or relative."""
    found = [f"twice: {row}" for row in ours.doubled]
    compare = {"stages": (ours.stages, theirs.stages), "steps": (ours.steps, theirs.steps)}
    compare |= {"tables": (ours.tables, theirs.tables), "files": (ours.files, theirs.files)}
    compare |= {"documents": (ours.documents, theirs.documents), "weights": (ours.weights, theirs.weights)}
    for what, (one, other) in compare.items():
        found += _differences(what, one, other)
    return found


def _differences(where: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lacking = [f"{where}: lost {key}" for key in theirs if key not in ours]
        added = [f"{where}: added {key}" for key in ours if key not in theirs]
        inside = [
            line
            for key in ours
            if key in theirs
            for line in _differences(f"{where} {key}", ours[key], theirs[key])
        ]
        return lacking + added + inside
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            line
            for number, pair in enumerate(zip(ours, theirs, strict=True))
            for line in _differences(f"{where} {number}", *pair)
        ]
    if isinstance(ours, float) and isinstance(theirs, float):
        same = math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    else:
        same = bool(ours == theirs)
    return [] if same else [f"{where}: {str(ours)[:100]} instead of {str(theirs)[:100]}"]


def _documents(content: bytes) -> list[Any]:
    """One document, or one for each line."""
    text = content.decode()
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def _weights(content: bytes) -> dict[str, list[float]]:
    found = {}
    for name, tensor in load(content).items():
        norm = float(tensor.norm())
        found[name] = [norm, float(tensor.double().sum()) / (norm or 1)]
    return found


def _place(file: str, pattern: str) -> str:
    """The folder of a table in parts, or the table's own file."""
    return file.rsplit("/", 1)[0] if pattern.endswith("/") else file


def _plain_name(file: str) -> str | None:
    """A file's name without times; None for what may be there more often, such as logs for TensorBoard."""
    if "/tensorboard/" in file or "events.out" in file:
        return None
    return re.sub(r"checkpoint_[\d_.-]+", "checkpoint", file)
