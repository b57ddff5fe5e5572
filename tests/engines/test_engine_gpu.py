"""One engine on a GPU: start, reload, seeds, scores, parity and two callers at once; see `pytest -m gpu`.

The reference is plain transformers on the CPU, in float32.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.builtin.iconbed import RULES
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import chains_location, read_dataset_info
from rdmldg_ray.engines.engine import Engine, GenerationRequest
from rdmldg_ray.engines.pool import engine_environment
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.parity import ParityError
from rdmldg_ray.storage import read_images, read_table
from tests.helpers import adapters
from tools import mini

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU")]

CLASSES = list(mini.CLASSES)
DIRECT = GenerationRequest("direct", 0, 0.0, 1.0, 16, 0)
CHAINS = GenerationRequest("reasoning", 0, 0.7, 1.0, 64, 0, score_label=True)


@pytest.fixture(scope="module")
def rows(mini_root):
    root = str(mini_root)
    samples = sample_index(root, read_dataset_info(root, mini.NAME), mini.DOMAINS)
    chosen = samples.take(list(range(0, len(samples), len(samples) // 8))[:8])
    chains = read_table(chains_location(root, mini.NAME, RULES), ["id", "text"])
    texts = {row["id"]: row["text"] for row in chains.to_pylist()}
    return [
        {"id": row["id"], "image": image, "label": row["label"], "chain": texts[row["id"]]}
        for row, image in zip(chosen.to_pylist(), read_images(chosen), strict=True)
    ]


@pytest.fixture(scope="module")
def adapter(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapters.write_adapter(folder, TINY_BASE, CLASSES, rows)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one GPU", "tensor parallel"])
def engine(request):
    if request.param > GPUS:
        pytest.skip(f"{GPUS} GPU")
    settings = [
        "workers.gpus_per_worker=1",
        f"engines.gpus_per_engine={request.param}",
        "engines.gpu_memory_utilization=0.3",
    ]
    config = load_config("demo", [*settings, "engines.dtype=bfloat16"])
    with pytest.MonkeyPatch.context() as environment:
        for name, value in engine_environment(config.engines).items():
            environment.setenv(name, value)
        engine = Engine(config, CLASSES)
        assert engine.load(None).how == "start"
        yield engine
        engine.stop()


@pytest.fixture
def batch(rows):
    return pa.table({name: [row[name] for row in rows] for name in ("id", "image", "label")})


def answers(engine, batch, request):
    return {row["id"]: row for row in engine.generate(batch, request).to_pylist()}


def test_an_adapter_is_served_and_taken_back(engine, adapter, batch):
    base = answers(engine, batch, CHAINS)
    report = engine.load(str(adapter))
    assert report.how == "reload"
    assert report.parity < 0.025
    assert {i: row["text"] for i, row in answers(engine, batch, CHAINS).items()} != {
        i: row["text"] for i, row in base.items()
    }
    engine.load(None)
    assert answers(engine, batch, CHAINS) == base, "the same weights and seeds give the same chains"


def test_a_seed_belongs_to_an_image_and_a_candidate(engine, batch):
    first = answers(engine, batch, CHAINS)
    second = answers(engine, batch, GenerationRequest("reasoning", 1, 0.7, 1.0, 64, 0))
    assert all(first[i]["text"] != second[i]["text"] for i in first)
    assert all(0 < row["num_tokens"] <= 64 and row["logprob"] < 0 for row in first.values())
    assert all(row["label_logprob"] < 0 for row in first.values())


def test_direct_answers_are_options(engine, batch):
    found = answers(engine, batch, DIRECT)
    assert {row["text"] for row in found.values()} <= set(CLASSES)
    assert all(row["logprob"] < 0 for row in found.values())


def test_two_callers_at_once_get_what_each_would_get_alone(engine, batch):
    parts = [batch.slice(0, 4), batch.slice(4)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: answers(engine, part, DIRECT), parts))
    alone = answers(engine, batch, DIRECT)
    assert {i: row["text"] for part in found for i, row in part.items()} == {
        i: row["text"] for i, row in alone.items()
    }


def test_an_adapter_without_its_vision_part_is_refused(engine, adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "copy")
    weights = load_file(copy / adapters.WEIGHTS)
    save_file(adapters.without("vision_model")(weights), copy / adapters.WEIGHTS)
    with pytest.raises(ParityError):
        engine.load(str(copy))
    engine.load(None)
