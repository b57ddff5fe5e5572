"""What a run scored, in DomainBed's own form: ``results.jsonl``, one record a line.

DomainBed's ``collect_results --input_dir <root>/runs`` reads these files, and so does
``rdmldg collect``. A run has one record for each fold, checkpoint and pathway; ``step`` is 0 for the
model before training, 1 after MTCT and 1 + k after round k of SARR.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.catalogue import DATASETS
from rdmldg_ray.domainbed.selection import Record
from rdmldg_ray.domainbed.splits import seed_hash
from rdmldg_ray.storage import StorageError, exists, join, read_bytes

RESULTS_FILE = "results.jsonl"
ZERO_SHOT = "zero-shot"

_NO_HYPERPARAMETERS = ("name", "storage", "workers", "engines", "evaluation")
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
    for number, line in enumerate(read_bytes(file).decode(errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            missing = {"dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"} - set(
                record["args"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: line {number} is not a record of DomainBed ({error!r})") from None
        if missing or "step" not in record:
            raise ValueError(f"{file}: line {number} has no {', '.join(sorted(missing)) or 'step'}")
        records.append(record)
    return records


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
