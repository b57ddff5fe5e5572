"""Yardsticks on a run's folds and splits: what to hold against the method's accuracies."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.folds import plan_folds
from rdmldg_ray.domainbed.records import make_record
from rdmldg_ray.domainbed.selection import Record
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runtime.remote import in_tasks
from rdmldg_ray.storage import join

LABELS_ONLY: Literal["labels-only"] = "labels-only"
Yardstick = Literal["linear-probe", "cnn", "labels-only"]
YARDSTICKS: tuple[Yardstick, ...] = get_args(Yardstick)
ALGORITHMS = {"linear-probe": "linear probe on the base", "cnn": "ERM, small CNN"}
"""What those of them that are not runs are called in tables."""


def baselines_uri(root: str, name: str) -> str:
    """The file of the records of a config's baselines."""
    return join(root, "baselines", f"{name}.jsonl")


def check_classes(info: DatasetInfo, yardsticks: Sequence[Yardstick]) -> None:
    """Raise ValueError for a data set of questions, whose rows have no classes in common."""
    of_classes = [yardstick for yardstick in yardsticks if yardstick in ALGORITHMS]
    if info.questions and of_classes:
        raise ValueError(
            f"data set {info.name} has questions, and {', '.join(of_classes)} needs classes; "
            f"give --yardsticks {LABELS_ONLY}"
        )


def measure(config: Config, info: DatasetInfo, yardsticks: Sequence[Yardstick]) -> list[Record]:
    """A record in DomainBed's form for each fold and each of ``ALGORITHMS``, measured in Ray tasks."""
    from rdmldg_ray.evaluation.baselines import cnn_answers, probe_answers  # torch

    samples = sample_index(config.storage, info, info.environments)
    labels = samples["label_id"].to_numpy()
    data = StageData(config, info)
    folds = plan_folds(config.data.held_out, info.environments)
    masks = [
        tuple(_among(samples, data.source_index(fold, split)) for split in ("in", "out")) for fold in folds
    ]
    cpus = config.workers.cpus_per_worker
    answers: dict[str, list[np.ndarray]] = {}
    if "linear-probe" in yardsticks:
        features, domains = _features(config, info, samples), samples["domain"].to_pylist()
        calls = [(features, labels, domains, *mask) for mask in masks]
        answers["linear-probe"] = in_tasks(probe_answers, calls, cpus, num_gpus=0)
    if "cnn" in yardsticks:
        augment = config.data.augment == "domainbed"
        trainings = [(samples, labels, train, augment, config.seed) for train, _ in masks]
        answers["cnn"] = in_tasks(cnn_answers, trainings, cpus, num_gpus=0)
    return [
        make_record(
            predictions=_scored(data.evaluation_set(fold), samples, answer == labels),
            config=config,
            environments=info.environments,
            algorithm=ALGORITHMS[yardstick],
            step=1,
        )
        for yardstick, of_folds in answers.items()
        for fold, answer in zip(folds, of_folds, strict=True)
    ]


def _features(config: Config, info: DatasetInfo, samples: pa.Table) -> np.ndarray:
    from rdmldg_ray.evaluation.baselines import image_features

    workers = config.workers
    size = -(-len(samples) // workers.num_workers)
    parts = [samples.slice(start, size) for start in range(0, len(samples), size)]
    calls = [(config, list(info.classes), part) for part in parts]
    return np.concatenate(in_tasks(image_features, calls, workers.cpus_per_worker, workers.gpus_per_worker))


def _among(samples: pa.Table, some: pa.Table) -> np.ndarray:
    mask: np.ndarray = pc.is_in(samples["id"], value_set=some["id"].combine_chunks()).to_numpy()
    return mask


def _scored(evaluated: pa.Table, samples: pa.Table, correct: np.ndarray) -> pa.Table:
    """The images of an evaluation with ``correct``, which is given for all samples."""
    places = pc.index_in(evaluated["id"], value_set=samples["id"].combine_chunks())
    return evaluated.append_column("correct", pa.array(correct).take(places))
