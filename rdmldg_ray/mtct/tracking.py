"""Metrics to TensorBoard, MLflow and Weights & Biases, by the setting ``tracking``.

Each is imported where it is used. MLflow and Weights & Biases find their server as they always do,
from ``MLFLOW_...`` and ``WANDB_...`` in the environment.

Why not accelerate's trackers? They act by accelerate's own process state, beside Ray's and DeepSpeed's, and
leave TensorBoard's files on the node; finding the record that an interrupted stage began would stay ours.
https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/tracking.py
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rdmldg_ray.config.schema import Config, Tracker
from rdmldg_ray.storage import join, upload_folder

_PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_TENSORBOARD_FOLDER = "tensorboard"
_TAG = "rdmldg_ray.stage"


def check_tracking(names: Sequence[Tracker]) -> None:
    """Raise ValueError, naming the remedy, when a tracker lacks its package or its server here."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"tracking: the package '{_PACKAGES[name]}' is not installed; pip install "
                f"'rdmldg_ray[{name}]' on every node, or leave {name} out of 'tracking'"
            )
    # By itself MLflow writes to the folder it runs in, which a worker loses when it ends.
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError(
            "tracking: mlflow needs the address of its server; set MLFLOW_TRACKING_URI in the environment"
        )


class StageTracker(Protocol):
    """Where one stage's metrics go."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take the metrics of a step."""

    def save(self) -> None:
        """Bring what was logged to where it stays."""

    def close(self) -> None:
        """End the record of a stage that is complete."""


def start_trackers(config: Config, stage: str, first_step: int) -> list[StageTracker]:
    """The trackers that the config names, for one stage.

    A stage that is resumed continues the same record, from ``first_step``.

    Raises:
        ValueError: when a package is missing or a tracker does not start, a server without an answer
            for instance.
    """
    check_tracking(config.tracking)
    trackers: list[StageTracker] = []
    for name in config.tracking:
        try:
            trackers.append(_STARTERS[name](config, stage, first_step))
        except Exception as error:  # of the library's own many kinds; all of them end a run that asked for it
            raise ValueError(
                f"tracking: {name} does not start ({error}); mend its settings in the environment, or leave "
                f"{name} out of 'tracking'"
            ) from error
    return trackers


class _TensorBoard:
    """Event files, written locally and copied to the stage's folder at every checkpoint."""

    def __init__(self, config: Config, stage: str, first_step: int):
        from tensorboardX import SummaryWriter

        self.location = join(stage, _TENSORBOARD_FOLDER)
        self.folder = tempfile.TemporaryDirectory(prefix="rdmldg-tensorboard-")
        self.writer = SummaryWriter(
            self.folder.name, purge_step=first_step, filename_suffix=f".from-{first_step}"
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def save(self) -> None:
        self.writer.flush()
        upload_folder(Path(self.folder.name), self.location)

    def close(self) -> None:
        # Unlike flush, close waits for the writer's thread, which may be some events behind.
        self.writer.close()
        upload_folder(Path(self.folder.name), self.location)
        self.folder.cleanup()


class _Mlflow:
    """An experiment for each run, and in it a run for each stage."""

    def __init__(self, config: Config, stage: str, first_step: int):
        import mlflow

        self.mlflow: Any = mlflow
        experiment = mlflow.set_experiment(config.name)
        found = mlflow.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{_TAG}` = '{_stage_id(stage)}'",
            output_format="list",
        )
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=_stage_name(stage), tags={_TAG: _stage_id(stage)})
            mlflow.log_dict(config.model_dump(mode="json"), "config.yaml")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        # A step does not wait for a server.
        self.mlflow.log_metrics(metrics, step=step, synchronous=False)

    def save(self) -> None:
        self.mlflow.flush_async_logging()

    def close(self) -> None:
        self.save()
        self.mlflow.end_run()


class _Wandb:
    """A group for each run, and in it a run for each stage."""

    def __init__(self, config: Config, stage: str, first_step: int):
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rdmldg_ray"),
            group=config.name,
            name=f"{config.name}/{_stage_name(stage)}",
            id=_stage_id(stage),
            resume="allow",
            config=config.model_dump(mode="json"),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def save(self) -> None:
        """Nothing to do: the library sends what was logged by itself."""

    def close(self) -> None:
        self.run.finish()


_STARTERS: dict[Tracker, Callable[[Config, str, int], StageTracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "wandb": _Wandb,
}


def _stage_name(stage: str) -> str:
    """``<held-out domain>/<model>``, the last two folders of a stage's location."""
    return "/".join(stage.split("/")[-2:])


def _stage_id(stage: str) -> str:
    """The same for a stage that is resumed, and another for every other place."""
    return hashlib.sha256(stage.encode()).hexdigest()[:16]
