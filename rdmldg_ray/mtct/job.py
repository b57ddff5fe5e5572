"""What travels from the driver to the training workers."""

from dataclasses import dataclass

import pyarrow as pa

from rdmldg_ray.config.schema import Config, TrainingConfig
from rdmldg_ray.mtct.batching import BatchPlan

# Below a training's folder.
ADAPTER_FOLDER = "adapter"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
"""Where Ray Train keeps its checkpoints."""


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know about its stage."""

    config: Config
    training: TrainingConfig
    plan: BatchPlan
    class_names: list[str]
    location: str
    """Where the stage's outputs go."""
    adapter: str | None
    """URI of the adapter to continue from; None for a new one."""
    model: str
    """What is trained, by fold and stage, as ``paint/sarr-1``."""
    seed: int
    parity_set: pa.Table
    """A few samples of the training set, to compare engines with; see ``models.parity``."""
