import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from safetensors.numpy import load, save

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.stage_outputs import adapter_tensors, missing_outputs
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA
from rdmldg_ray.sarr.selection import REJECTION_SCHEMA
from rdmldg_ray.storage import (
    delete_file,
    delete_folder,
    join,
    read_bytes,
    read_table,
    write_bytes,
    write_json,
    write_table,
)
from tests.helpers.stage_files import MODULES, write_training
from tools import mini

MTCT, ROUND = Stage("flat", "mtct", 0), Stage("flat", "train", 1)
DRAWS, EVALUATION = Stage("flat", "generate", 1), Stage("flat", "evaluate", 1)
ADAPTER, METRICS = "mtct/adapter/adapter_model.safetensors", "mtct/metrics.jsonl"


@pytest.fixture(scope="module")
def mini_root(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("mini"))
    mini.write_mini(root)
    return root


@pytest.fixture
def stage_data(mini_root, tmp_path):
    (tmp_path / "datasets").symlink_to(f"{mini_root}/datasets")
    config = load_config("demo", [*mini.SETTINGS, f"storage={tmp_path}"])
    return StageData(config, read_dataset_info(mini_root, "mini"))


@pytest.fixture
def missing(stage_data):
    """A fold with all that its stages leave; looks what is missing after one file was changed."""
    store = RunStore(stage_data.config.storage, "demo")
    summaries = {
        MTCT: write_training(store, MTCT, stage_data.config, 48),
        ROUND: write_training(store, ROUND, stage_data.config, 30),
    }
    ids = stage_data.source_index("flat", "in")["id"].to_pylist()
    drawn = pa.Table.from_pylist([{"id": i, "candidate": 0} for i in ids], CANDIDATE_SCHEMA)
    write_table(join(store.candidates_uri("flat", "sarr-1"), "part-00000.parquet"), drawn)
    write_table(join(store.selected_uri("flat", "sarr-1"), "part-00000.parquet"), drawn.slice(0, 0))
    write_table(store.rejections_uri("flat", "sarr-1"), REJECTION_SCHEMA.empty_table())
    asked = stage_data.evaluation_set("flat")["id"].to_pylist()
    answers = [{"id": i, "pathway": pathway} for pathway in ("direct", "reasoning") for i in asked]
    write_table(store.predictions_uri("flat", "sarr-1"), pa.Table.from_pylist(answers, PREDICTION_SCHEMA))
    write_json(store.accuracies_uri("flat", "sarr-1"), {})

    def missing(stage, file=None, change=None):
        if file:
            location = join(store.uri, "flat", file)
            if change is None:
                delete_file(location)
            elif file.endswith(".parquet") and callable(change):
                write_table(location, change(read_table(location)))
            else:
                write_bytes(location, change(read_bytes(location)))
        return missing_outputs(store, stage, stage_data, summaries.get(stage, {}))

    missing.store = store
    return missing


@pytest.mark.parametrize("stage", [MTCT, DRAWS, ROUND, EVALUATION], ids=lambda stage: stage.kind)
def test_a_whole_stage_lacks_nothing(missing, stage):
    assert missing(stage) == []


@pytest.mark.parametrize("stage", [MTCT, DRAWS, ROUND, EVALUATION], ids=lambda stage: stage.kind)
def test_a_stage_that_did_nothing_is_never_complete(stage, stage_data):
    store = RunStore(stage_data.config.storage, "empty")
    [line] = missing_outputs(store, stage, stage_data, {"samples": 48})
    assert store.uri in line


def without_one_matrix(data):
    tensors = load(data)
    tensors.pop(f"base_model.model.{MODULES[0]}.lora_B.weight")
    return save(tensors)


def without_one_module(data):
    return save({name: tensor for name, tensor in load(data).items() if MODULES[0] not in name})


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (ADAPTER, None, "no *.safetensors here"),
        (ADAPTER, lambda data: b"", "cut or no safetensors file"),
        (ADAPTER, lambda data: data[:-1], "cut or no safetensors file"),
        (ADAPTER, lambda data: data[:20], "cut or no safetensors file"),
        (ADAPTER, lambda data: b"\xff" * len(data), "cut or no safetensors file"),
        (ADAPTER, lambda data: save({}), "holds no weights"),
        (
            ADAPTER,
            without_one_matrix,
            f"1 of its weights are missing, such as base_model.model.{MODULES[0]}.lo",
        ),
        (ADAPTER, without_one_module, f"1 of its weights are missing, such as {MODULES[0]}"),
        ("mtct/adapter/adapter_config.json", lambda data: b"{", "is not valid JSON"),
        ("mtct/adapter/adapter_config.json", None, "adapter: adapter_config.json is missing"),
        ("mtct/adapter/parity.parquet", None, "parity.parquet"),
        ("mtct/adapter/parity.parquet", lambda table: table.drop_columns(["logprobs"]), "logprobs"),
        (METRICS, None, "metrics.jsonl"),
        (METRICS, lambda data: b"", "does not reach the last of 12 steps"),
        (METRICS, lambda data: b"".join(data.splitlines(keepends=True)[:-1]), "the last of 12 steps"),
        (METRICS, lambda data: data[:-9], "does not reach the last of 12 steps"),
        (METRICS, lambda data: data + b"[]\n", "does not reach the last of 12 steps"),
    ],
)
def test_a_training_without_all_of_its_weights_and_steps_is_not_complete(missing, file, change, told):
    lines = missing(MTCT, file, change)
    assert lines and told in "\n".join(lines)


def test_a_round_leaves_the_weights_that_it_began_with(missing, stage_data):
    write_training(missing.store, ROUND, stage_data.config, 30, modules=MODULES[:1])
    [line] = missing(ROUND)
    assert line.endswith("flat/mtct/adapter, from which it was trained")


def test_every_image_has_a_candidate(missing):
    [line] = missing(DRAWS, "sarr-1/candidates/part-00000.parquet", lambda table: table.slice(3))
    assert "no candidate for 3 (mini/paint/bird/" in line and line.endswith("of 48 images")
    [line] = missing(DRAWS, "sarr-1/rejections.parquet")
    assert "rejections.parquet" in line


def test_every_image_has_an_answer_of_each_pathway(missing):
    def one_less(table):
        drop = table.filter(pc.field("pathway") == "reasoning")["id"][0].as_py()
        return table.filter((pc.field("pathway") == "direct") | (pc.field("id") != drop))

    [line] = missing(EVALUATION, "evaluation/sarr-1/predictions.parquet", one_less)
    assert "no answer of the reasoning pathway for 1 (mini/" in line
    [line] = missing(EVALUATION, "evaluation/sarr-1/metrics.json", lambda data: b"{")
    assert line


def test_a_full_fine_tuning_is_compared_with_its_index(tmp_path):
    import numpy as np

    location = str(tmp_path)
    for number, name in enumerate("ab"):
        write_bytes(f"{location}/trained-{number}.safetensors", save({name: np.zeros(2, np.float32)}))
    index = {"weight_map": {"a": "trained-0.safetensors", "b": "trained-1.safetensors"}}
    write_bytes(f"{location}/trained.safetensors.index.json", json.dumps(index).encode())
    assert adapter_tensors(location) == {"a": [2], "b": [2]}
    delete_file(f"{location}/trained-1.safetensors")
    with pytest.raises(ValueError, match="1 of its weights are missing, such as b"):
        adapter_tensors(location)
    delete_folder(location)
    with pytest.raises(ValueError, match=r"no \*\.safetensors here"):
        adapter_tensors(location)
