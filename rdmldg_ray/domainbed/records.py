"""What a run scored, in DomainBed's own form: ``results.jsonl``, one record a line.

DomainBed's ``collect_results --input_dir <root>/runs`` reads these files, and so does
``rdmldg collect``. A run has one record for each fold, checkpoint and pathway; ``step`` is 0 for the
model before training, 1 after MTCT and 1 + k after round k of SARR.
"""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.catalogue import DATASETS
from rdmldg_ray.domainbed.selection import Record, num_envs
from rdmldg_ray.domainbed.splits import seed_hash
from rdmldg_ray.storage import StorageError, exists, join, read_bytes

RESULTS_FILE = "results.jsonl"
ZERO_SHOT = "zero-shot"

_NO_HYPERPARAMETERS = ("name", "storage", "workers", "engines", "evaluation")
_ROUNDING = 1e-6
_NUMBERS = ("trial_seed", "hparams_seed")
RECORD_COLUMNS = ["domain", "split", "held_out", "pathway", "correct"]
"""Columns of predictions that ``make_records`` reads."""


def algorithm(config: Config) -> str:
    """What the method is called with these settings, without the pathway that answers."""
    weights = config.mtct.weights
    return "labels only" if weights.reasoning == 0 else "chains only" if weights.direct == 0 else "RD-MLDG"


def hyperparameters(config: Config) -> dict[str, Any]:
    """The settings that a result depends on and DomainBed would call hyperparameters: not the folds, the
    seeds, nor how a run goes."""
    settings = config.model_dump(mode="json", exclude={*_NO_HYPERPARAMETERS, "seed"})
    for protocol in ("dataset", "held_out", "trial_seed", "holdout_fraction"):
        settings["data"].pop(protocol)
    return settings


def make_records(
    predictions: pa.Table, config: Config, environments: Sequence[str], model: str, step: int
) -> list[Record]:
    """One record for each pathway of an evaluation's predictions.

    ``env<i>_all_acc`` is ours: accuracy on all of a held-out environment. Sources have no ``in`` part
    here, since a run does not evaluate on what it trained on.
    """
    name = ZERO_SHOT if model == ZERO_SHOT else algorithm(config)
    return [
        make_record(
            predictions=predictions.filter(pc.field("pathway") == pathway),
            config=config,
            environments=environments,
            algorithm=f"{name} ({pathway})",
            step=step,
        )
        for pathway in sorted(set(predictions["pathway"].to_pylist()))
    ]


def make_record(
    *, predictions: pa.Table, config: Config, environments: Sequence[str], algorithm: str, step: int
) -> Record:
    """The record of one algorithm's predictions of a fold's images; see ``RECORD_COLUMNS``."""
    hparams = hyperparameters(config)
    known = DATASETS.get(config.data.dataset)
    held_out = set(predictions.filter(pc.field("held_out"))["domain"].to_pylist())
    args = {
        "dataset": known.title if known else config.data.dataset,
        "algorithm": algorithm,
        "test_envs": [i for i, domain in enumerate(environments) if domain in held_out],
        "trial_seed": config.data.trial_seed,
        "hparams_seed": seed_hash(json.dumps(hparams, sort_keys=True)),
        "seed": config.seed,
        "holdout_fraction": config.data.holdout_fraction,
        "task": "domain_generalization",
        "environments": list(environments),
    }
    scores = _accuracies(predictions, environments, held_out)
    return {"args": args, "hparams": hparams, "step": step} | scores


def read_results(location: str) -> list[Record]:
    """The records of a run's folder, or of a ``.jsonl`` file of such records.

    Raises:
        StorageError: when there are none.
        ValueError: when a line is not a record; the message names file and line.
    """
    file = location if location.endswith(".jsonl") else join(location, RESULTS_FILE)
    if not exists(file):
        raise StorageError(f"{file}: no results here; a run writes them with its first evaluation")
    records = []
    for number, line in enumerate(read_bytes(file).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(_checked(json.loads(line)))
        except (ValueError, RecursionError) as error:
            told = " ".join(str(error).split())
            raise ValueError(
                f"{file}: line {number} is not a record of DomainBed ({told}); restore the file, or delete "
                "the line"
            ) from None
    if not records:
        raise ValueError(f"{file}: is empty; restore it, or leave it out")
    return records


def _checked(record: Any) -> Record:
    """A record whose parts are what model selection takes them for; ValueError says what is not."""
    if not isinstance(record, dict) or not isinstance(args := record.get("args"), dict):
        raise ValueError("no object with 'args'")
    if missing := [key for key in ("dataset", "algorithm", *_NUMBERS, "test_envs") if key not in args]:
        raise ValueError(f"'args' has no {', '.join(missing)}")
    for key in ("dataset", "algorithm"):
        if not isinstance(args[key], str):
            raise ValueError(f"'{key}' is no text")
    for key, value in [*((key, args[key]) for key in _NUMBERS), ("step", record.get("step"))]:
        if not isinstance(value, int):
            raise ValueError(f"'{key}' is no whole number")
    if not isinstance(args.get("seed"), int | None):
        raise ValueError("'seed' is no whole number")
    scores = {key: value for key, value in record.items() if re.fullmatch(r"env\d+_(in|out|all)_acc", key)}
    for key, value in scores.items():
        if not isinstance(value, int | float) or not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise ValueError(f"'{key}' is no accuracy between 0 and 1")
    envs = num_envs(record)
    if envs != sum(key.endswith("_out_acc") for key in scores):
        raise ValueError(f"no 'env{envs}_out_acc'")
    names = args.get("environments", [""] * envs)
    if not isinstance(names, list) or len(names) != envs or not all(isinstance(name, str) for name in names):
        raise ValueError("'environments' is no list of their names")
    if not isinstance(args["test_envs"], list):
        raise ValueError("'test_envs' is no list")
    for env in args["test_envs"]:
        if not isinstance(env, int) or env not in range(envs) or f"env{env}_in_acc" not in scores:
            raise ValueError(f"no accuracies of the test environment {env!r}")
    return record


def _accuracies(predictions: pa.Table, environments: Sequence[str], held_out: set[str]) -> dict[str, float]:
    found = {}
    for number, domain in enumerate(environments):
        mine = predictions.filter(pc.field("domain") == domain)
        parts = {part: mine.filter(pc.field("split") == part) for part in ("in", "out")}
        if domain in held_out:
            parts["all"] = mine
        for part, rows in parts.items():
            if len(rows):
                found[f"env{number}_{part}_acc"] = pc.mean(pc.cast(rows["correct"], pa.float64())).as_py()
    return found
