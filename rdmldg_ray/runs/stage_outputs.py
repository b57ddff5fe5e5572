"""What a stage must have left before it is entered as complete: the one place where that is looked at."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.evaluation.predictions import read_predictions
from rdmldg_ray.models.folder import tensor_shapes
from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.store import RunStore, Stage, model_name
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.storage import join, list_files, read_bytes, read_json, read_table

_NAMED = 10
_LORA_MATRICES = ("lora_A", "lora_B")


def missing_outputs(store: RunStore, stage: Stage, data: StageData, summary: dict[str, Any]) -> list[str]:
    """What is missing or unreadable of a stage's outputs, a line for each; empty when all is there.

    Args:
        summary: what the stage told of itself.
    """
    checks = {"mtct": _training, "train": _training, "generate": _candidates, "evaluate": _predictions}
    try:
        return list(checks[stage.kind](store, stage, data, summary))
    except (ValueError, KeyError) as error:  # a file or column that is missing or cannot be read
        return [f"{store.stage_uri(stage)}: {error}"]


def adapter_tensors(location: str) -> dict[str, list[int]]:
    """Shapes by name of the weights that a training left, an adapter's or those of a full fine-tuning.

    Raises:
        ValueError: when there are none, a file is cut, or some are missing.
    """
    files = list_files(location)
    weights = [file for file in files if file.endswith(".safetensors")]
    if not weights:
        raise ValueError(f"{location}: no *.safetensors here; the training that left it has to be run again")
    shapes = {name: shape for file in weights for name, shape in tensor_shapes(file).items()}
    if not shapes:
        raise ValueError(f"{weights[0]}: holds no weights; the training that left it has to be run again")
    expected: set[str] = set()
    names = {file.rpartition("/")[2] for file in files}
    if "adapter_model.safetensors" in names and "adapter_config.json" not in names:
        raise ValueError(
            f"{location}: adapter_config.json is missing; the training that left it has to be run again"
        )
    for file in files:
        if file.endswith(".safetensors.index.json"):
            expected |= set(_read_object(file).get("weight_map", {}))
        if file.endswith("/adapter_config.json"):
            modules = {name.split(".lora_")[0] for name in shapes}
            expected |= {f"{name}.{matrix}.weight" for name in modules for matrix in _LORA_MATRICES}
            config = _read_object(file)
            if not isinstance(config.get("peft_type"), str):
                raise ValueError(
                    f"{file}: names no peft_type, so it is no adapter's; the training that left it has to be "
                    "run again"
                )
            targets = config.get("target_modules") or []
            if isinstance(targets, list):  # else a pattern
                expected |= {t for t in targets if not any(f".{m}".endswith(f".{t}") for m in modules)}
    lacking = sorted(expected - set(shapes))
    if lacking:
        raise ValueError(
            f"{location}: {len(lacking)} of its weights are missing, such as {lacking[0]}; the training that "
            "left it has to be run again"
        )
    return shapes


def _training(store: RunStore, stage: Stage, data: StageData, summary: dict[str, Any]) -> Iterator[str]:
    config = data.config
    adapter = store.adapter_uri(stage.held_out, stage.model)
    assert adapter
    shapes = adapter_tensors(adapter)
    if stage.round > 0:
        before = store.adapter_uri(stage.held_out, model_name(stage.round - 1))
        assert before
        if shapes != adapter_tensors(before):
            yield f"{adapter}: has other weights than {before}, from which it was trained"
    read_table(join(adapter, PARITY_FILE), ["logprobs"])["logprobs"]
    training = config.mtct if stage.kind == "mtct" else config.sarr.training
    steps = BatchPlan.make(summary["samples"], config.workers.num_workers, training, seed=0).total_steps
    metrics = store.metrics_uri(stage.held_out, stage.model)
    lines = read_bytes(metrics).splitlines()
    try:
        last = json.loads(lines[-1])["step"] if lines else None
    except (ValueError, KeyError, TypeError):
        last = None
    if last != steps - 1:  # steps are counted from 0
        yield f"{metrics}: does not reach the last of {steps} steps"


def _candidates(store: RunStore, stage: Stage, data: StageData, summary: dict[str, Any]) -> Iterator[str]:
    location = store.candidates_uri(stage.held_out, stage.model)
    wanted = data.source_index(stage.held_out, "in")["id"]
    yield from _without(location, "candidate", wanted, read_candidates(location, ["id"])["id"])
    read_table(store.selected_uri(stage.held_out, stage.model), ["id"])
    read_table(store.rejections_uri(stage.held_out, stage.model))


def _predictions(store: RunStore, stage: Stage, data: StageData, summary: dict[str, Any]) -> Iterator[str]:
    location = store.predictions_uri(stage.held_out, stage.model)
    wanted = data.evaluation_set(stage.held_out)["id"]
    found = read_predictions(location, ["id", "pathway"])
    for pathway in data.config.evaluation.pathways:
        mine = found.filter(pc.field("pathway") == pathway)["id"]
        yield from _without(location, f"answer of the {pathway} pathway", wanted, mine)
    read_json(store.accuracies_uri(stage.held_out, stage.model))


def _without(location: str, what: str, wanted: pa.ChunkedArray, found: pa.ChunkedArray) -> Iterator[str]:
    lacking = wanted.filter(pc.invert(pc.is_in(wanted, value_set=found.combine_chunks())))
    if len(lacking):
        yield f"{location}: no {what} for {named(lacking.to_pylist())} of {len(wanted)} images"


def named(ids: Iterable[str]) -> str:
    """How many, and the first ten of them."""
    ids = list(ids)
    more = ", ..." if len(ids) > _NAMED else ""
    return f"{len(ids)} ({', '.join(ids[:_NAMED])}{more})"


def _read_object(file: str) -> dict[str, Any]:
    try:
        content = read_json(file)
        assert isinstance(content, dict)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{file}: is not valid JSON ({error}); the training that left it has to be run again"
        ) from None
    return content
