"""One stage of training as a Ray Train job."""

import itertools
import json
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.train import CheckpointConfig, ControllerError, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from rdmldg_ray.config.schema import Config, TrainingConfig
from rdmldg_ray.models.parity import PARITY_IMAGES
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.mtct.job import CHECKPOINTS_FOLDER, TrainJob
from rdmldg_ray.mtct.ray_trainer import RayTrainer
from rdmldg_ray.mtct.stream import READ_CPUS, stream_options, training_stream
from rdmldg_ray.runtime.placement import wait_for_room
from rdmldg_ray.storage import (
    StorageError,
    delete_file,
    delete_folder,
    exists,
    join,
    list_folders,
    open_location,
    read_bytes,
    write_bytes,
)

# Ray Train's own record of the checkpoints that count, written when all workers have sent their shards.
# https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/constants.py#L14
_COMMITTED = "checkpoint_manager_snapshot.json"

# What a worker writes down before it fails.
_USER_ERROR = "user_error.txt"
_OUT_OF_MEMORY = "out_of_memory.txt"
_STOPPED = (_USER_ERROR, _OUT_OF_MEMORY)

_log = logging.getLogger(__name__)


def train_stage(
    config: Config,
    training: TrainingConfig,
    training_set: pa.Table,
    class_names: list[str],
    location: str,
    adapter: str | None,
    model: str,
    seed: int,
) -> None:
    """Train on ``training_set`` and leave ``adapter/`` and ``metrics.jsonl`` at ``location``.

    A stage that was interrupted resumes from its last checkpoint, as Ray Train finds it below
    ``location``; so does a worker group that lost a worker, and one that ran out of memory, with half as
    many images in a forward pass.

    Args:
        training_set: index of the samples with a column ``chain``, null where there is none; see
            ``mtct.stream``.
        class_names: all classes, in the order in which the prompts list them.
        location: where outputs and checkpoints go.
        adapter: URI of the adapter to continue from, or None for a new one.
        model: what is trained, by fold and stage, as ``paint/sarr-1``.
        seed: seeds adapters, order and augmentation.

    Raises:
        ValueError: when the training set is too small for the workers, or memory for a single image.
        TimeoutError: when there is no room for the workers in ``workers.scheduling_timeout_s``.
    """
    plan = BatchPlan.make(len(training_set), config.workers.num_workers, training, seed)
    job = TrainJob(
        config=config,
        training=training,
        plan=plan,
        class_names=class_names,
        location=location,
        adapter=adapter,
        model=model,
        seed=seed,
        parity_set=_spread(training_set),
    )
    while shortage := _fit(job, training_set):
        size = job.training.micro_batch_size // 2
        if not size:
            raise ValueError(
                f"{shortage}; set workers.gradient_checkpointing=true, raise workers.zero_stage, or leave "
                "out the longest chains"
            )
        _log.warning(
            "%s; resuming from the last checkpoint with micro_batch_size %d, which changes no result",
            shortage,
            size,
        )
        fewer = training.model_copy(update={"micro_batch_size": size})
        plan = BatchPlan.make(len(training_set), config.workers.num_workers, fewer, seed)
        job = replace(job, training=fewer, plan=plan)


def _fit(job: TrainJob, training_set: pa.Table) -> str | None:
    """Train to the plan's end; returns where memory ran out, if it did."""
    workers, location = job.config.workers, job.location
    # Not by its URI, for which Ray Train would make a file system that gives up after seconds:
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/storage.py#L325
    filesystem, path = open_location(location)
    on_gpu = workers.gpus_per_worker > 0
    resources = {"CPU": workers.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = workers.gpus_per_worker

    shared = ray.put(training_set)

    def trainer() -> RayTrainer:
        return RayTrainer(
            _train_worker,
            train_loop_config={"job": job},
            # Called whenever workers start, those that take the place of lost ones too.
            datasets={"train": partial(_stream_from_checkpoint, shared, job.plan, location)},
            dataset_config=DataConfig(execution_options=stream_options(workers.num_workers)),
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers, use_gpu=on_gpu, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            run_config=RunConfig(
                name=CHECKPOINTS_FOLDER,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )

    for file in _STOPPED:
        delete_file(join(location, file))
    sweep_checkpoints(location)
    # Ray Train would ask for its workers for ever, and its workers wait for ever for a reader that
    # finds no core.
    room = [resources] * workers.num_workers + [{"CPU": READ_CPUS}]
    try:
        for lost in itertools.count():  # without an end where max_failures is -1
            wait_for_room(room, workers.scheduling_timeout_s, "workers.scheduling_timeout_s")
            try:
                trainer().fit()
                break
            except ControllerError as error:
                # What Ray Train itself does not get over, such as a worker lost while it is being started.
                if lost == workers.max_failures:
                    raise
                _log.warning(
                    "training ended, and resumes from its last checkpoint: %s",
                    " ".join(str(error).split())[:400],
                )
    except Exception:
        # Rather than what Ray Train made of it.
        _raise_user_error(location)
        if shortage := _read(location, _OUT_OF_MEMORY):
            return shortage
        raise
    _raise_user_error(location)
    sweep_checkpoints(location)
    return _read(location, _OUT_OF_MEMORY)


def _stream_from_checkpoint(
    shared: "ray.ObjectRef[pa.Table]", plan: BatchPlan, location: str
) -> ray.data.Dataset:
    """The stream from the step that follows the last checkpoint."""
    # Where only the outputs are left to write, workers skip the last step, for a stream is never empty.
    return training_stream(shared, plan, min(_committed(location)[1], plan.total_steps - 1))


def _committed(location: str) -> tuple[set[str], int]:
    """Names of a stage's checkpoints that count, and the step that follows the last, by Ray Train's record.

    Raises:
        ValueError: when that is damaged.
    """
    record = join(location, CHECKPOINTS_FOLDER, _COMMITTED)
    if not exists(record):
        return set(), 0
    data = read_bytes(record)
    try:
        found = json.loads(data)
        latest = found.get("latest_checkpoint_result")
        names = {str(result["checkpoint_dir_name"]) for result in found["checkpoint_results"]}
        return names, int(latest["metrics"]["step"]) + 1 if latest else 0
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{record}: is damaged ({error!r}); restore it, or delete its folder, which begins this training "
            "anew"
        ) from None


def sweep_checkpoints(location: str) -> None:
    """Remove checkpoints that were sent but never counted: a worker, or all of them, ended in between.

    Nothing would read them again, and Ray Train does not remove them. Not while the stage trains.
    """
    folder = join(location, CHECKPOINTS_FOLDER)
    there = list_folders(folder)  # before the record, so that none is removed that it comes to name
    committed, _ = _committed(location)
    for name in there:
        if name.startswith("checkpoint_") and name not in committed:
            delete_folder(join(folder, name))


def _spread(training_set: pa.Table) -> pa.Table:
    """Samples from all over the training set, so that they show several domains and classes.

    Those with a chain, unless none has one.
    """
    places = pc.indices_nonzero(training_set["chain"].is_valid())
    if not len(places):
        places = pa.array(range(len(training_set)))
    count = min(PARITY_IMAGES, len(places))
    return training_set.take([places[number * len(places) // count].as_py() for number in range(count)])


def _raise_user_error(location: str) -> None:
    """Raise what a worker has written down as the user's error."""
    if message := _read(location, _USER_ERROR):
        raise ValueError(message)


def _read(location: str, file: str) -> str | None:
    file = join(location, file)
    return read_bytes(file).decode() if exists(file) else None


def _train_worker(settings: dict[str, Any]) -> None:
    # Only the workers pay for importing DeepSpeed and transformers.
    from rdmldg_ray.mtct.checks import MemoryExhaustedError
    from rdmldg_ray.mtct.worker import TrainWorker

    job: TrainJob = settings["job"]
    # Ray Train restarts failed workers, which helps after a lost node but not with an image that does not
    # decode. So what the driver has to see is written down, and workers that start after it end at once.
    if any(exists(join(job.location, file)) for file in _STOPPED):
        return
    try:
        TrainWorker(job).run()
    except StorageError:
        raise  # the driver could use the storage, so that it may come back
    except ValueError as error:
        file = _OUT_OF_MEMORY if isinstance(error, MemoryExhaustedError) else _USER_ERROR
        write_bytes(join(job.location, file), str(error).encode())
        raise
