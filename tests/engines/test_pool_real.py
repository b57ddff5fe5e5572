"""The pool with real engines: what it answers, what it refuses, and what happens when engines die."""

import io
import json
import os
import shutil
import time

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from PIL import Image, ImageOps
from rich.console import Console

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import EnginesConfig, ModelConfig
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.engines import pool as pool_module
from rdmldg_ray.engines.engine import EngineError, GenerationRequest
from rdmldg_ray.engines.pool import EnginePool
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_base, load_processor
from rdmldg_ray.models.parity import ParityError
from rdmldg_ray.runs.run import Run
from rdmldg_ray.sarr.round import generate_round
from rdmldg_ray.storage import join, read_images, read_table, write_table
from tests.helpers import adapters
from tools import mini

pytestmark = pytest.mark.slow

CLASSES = list(mini.CLASSES)
DIRECT = GenerationRequest("direct", 0, 0.0, 1.0, 16, 0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, ray_cluster):
    """A run of the data set ``mini`` that has not begun; its index of 48 samples is what engines get."""
    root = str(tmp_path_factory.mktemp("mini"))
    mini.write_mini(root)
    config = load_config("demo", ["data.dataset=mini", f"storage={root}"])
    return Run(config, read_dataset_info(root, "mini"), Console())


@pytest.fixture(scope="module")
def samples(pipeline):
    return pipeline.data.source_index("flat", "in")


def saved(image, form, **settings):
    sink = io.BytesIO()
    image.save(sink, form, **settings)
    return sink.getvalue()


def plain(data):
    return data


def turned_jpeg(data):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by whoever shows it
    return saved(decode_image("a", data).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def palette_with_transparency(data):
    indexed = decode_image("a", data).quantize(64)
    return saved(indexed, "PNG", transparency=indexed.getpixel((0, 0)))


def gray16(data):
    gray = np.asarray(decode_image("a", data).convert("L"), dtype=np.uint16)
    return saved(Image.fromarray(gray * 257), "PNG")


def cmyk_jpeg(data):
    return saved(decode_image("a", data).convert("CMYK"), "JPEG")


def animated(data):
    first = decode_image("a", data)
    return saved(first, "GIF", save_all=True, append_images=[ImageOps.invert(first)])


FORMS = (plain, turned_jpeg, palette_with_transparency, gray16, cmyk_jpeg, animated, plain, turned_jpeg)


@pytest.fixture(scope="module")
def adapter(pipeline, samples, tmp_path_factory):
    """An adapter with the log-probabilities of the teacher's chains for eight images, in many forms."""
    chains = read_table(join(pipeline.config.storage, "datasets/mini/chains/rules"), ["id", "text"])
    texts = {row["id"]: row["text"] for row in chains.to_pylist()}
    chosen = samples.take(list(range(0, 48, 6)))
    rows = [
        {"id": row["id"], "image": stored(image), "label": row["label"], "chain": texts[row["id"]]}
        for row, image, stored in zip(chosen.to_pylist(), read_images(chosen), FORMS, strict=True)
    ]
    folder = tmp_path_factory.mktemp("adapter")
    adapters.write_adapter(folder, TINY_BASE, CLASSES, rows)
    return str(folder)


def make_pool(pipeline, model=None, max_length=512, **engines):
    config = pipeline.config
    own = {"max_length": max_length} | ({"path": str(model)} if model else {})
    changed = {
        "engines": config.engines.model_copy(update=engines),
        "model": config.model.model_copy(update=own),
    }
    return EnginePool(config.model_copy(update=changed), CLASSES)


@pytest.fixture
def pool(pipeline):
    """Make a pool with some settings; it is closed at the end."""
    pools = []

    def make(**settings):
        pools.append(make_pool(pipeline, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def shared_pool(pipeline):
    """A pool of one engine, of which a test may end the engine: another takes its place."""
    pool = make_pool(pipeline, num_engines=1, batch_size=8)
    yield pool
    pool.close()


def processes_of(pool):
    """The engines' own processes, and those that they have started."""
    pids = [ray.get(m.actor.__ray_call__.remote(lambda engine: os.getpid())) for m in pool._members]
    actors = [psutil.Process(pid) for pid in pids]
    return actors, [child for actor in actors for child in actor.children(recursive=True)]


def test_direct_answers_are_the_most_probable_options(shared_pool, samples):
    few = samples.take(list(range(0, 48, 4)))
    shared_pool.load(None)
    answers = pa.concat_tables(shared_pool.generate(few, DIRECT)).to_pylist()
    model = load_base(TINY_BASE, ModelConfig(dtype="float32")).eval()
    prompts = PathwayPrompts(load_processor(TINY_BASE), CLASSES)
    rows = zip(few["id"].to_pylist(), read_images(few), strict=True)
    options = [
        {"id": sample_id, "image": image, "pathway": "direct", "target": name}
        for sample_id, image in rows
        for name in CLASSES
    ]
    adapters.score(model, prompts, options, "logprobs")
    for answer in answers:
        scores = {row["target"]: sum(row["logprobs"]) for row in options if row["id"] == answer["id"]}
        assert answer["text"] == max(scores, key=scores.get)
        assert answer["logprob"] == pytest.approx(max(scores.values()), abs=1e-3)
        assert answer["finished"]


def test_a_round_whose_engine_is_killed_has_each_candidate_once(
    shared_pool, pipeline, samples, adapter, tmp_path
):
    bad = str(tmp_path / "bad.parquet")
    write_table(bad, pa.table({"image": [b"no image"]}))
    row = samples.slice(0, 1).to_pylist()[0] | {"id": "mini/bad.png", "file": bad, "row_group": 0, "row": 0}
    drawn_from = pa.concat_tables([samples, pa.Table.from_pylist([row], schema=samples.schema)])
    few = {"sampling": "fixed", "max_attempts": 2, "max_new_tokens": 32}
    sarr = pipeline.config.sarr.model_copy(update=few)
    killed = []

    def kill(done, total, text):
        if not killed:
            [actor], children = processes_of(shared_pool)
            killed.extend([actor, *children])
            actor.kill()

    shared_pool.load(adapter)
    location = str(tmp_path / "round")
    summary = generate_round(shared_pool, drawn_from, CLASSES, sarr, 1, "mtct", location, kill)
    # The engine, and the one that took its place after a parity check of its own.
    assert [report.how for report in shared_pool._reports[1:]] == ["start"]
    assert all(report.parity < 1e-3 for report in shared_pool._reports)

    candidates = read_table(join(location, "candidates")).to_pylist()
    expected = {(i, k) for i in samples["id"].to_pylist() for k in range(2)} | {("mini/bad.png", 0)}
    assert len(candidates) == len(expected)
    assert {(row["id"], row["candidate"]) for row in candidates} == expected
    assert {row["id"] for row in candidates if row["reason"] == "bad_image"} == {"mini/bad.png"}
    assert summary["bad_images"] == 1
    assert all(0 < row["label_prob"] <= 1 for row in candidates if row["reason"] != "bad_image")
    # vLLM's own processes ended with the engines that were killed.
    assert psutil.wait_procs(killed, timeout=10)[1] == []


def test_an_engine_that_hangs_is_ended_after_the_set_time_with_what_it_asked_for(shared_pool, samples):
    shared_pool.load(None)
    shared_pool._engines = shared_pool._engines.model_copy(update={"batch_timeout_s": 5, "max_restarts": 0})
    answers = shared_pool.generate(samples, GenerationRequest("reasoning", 0, 1.0, 1.0, 100, 0))
    [actor], _ = processes_of(shared_pool)
    actor.suspend()
    try:
        with pytest.raises(EngineError, match=r"no answer to a batch in 5 s .*asked for 1 x 0\.25 CPU"):
            list(answers)
    finally:
        actor.kill()


def test_vllms_own_processes_end_with_a_killed_engine(pool, monkeypatch):
    # As on GPUs: the core of vLLM in a process of its own.
    environment = {**pool_module.engine_environment(EnginesConfig()), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    monkeypatch.setattr(pool_module, "engine_environment", lambda engines: environment)
    engines = pool(num_engines=1)
    engines.load(None)
    [actor], children = processes_of(engines)
    assert children
    actor.kill()
    deadline = time.monotonic() + 10
    while left := [process for process in children if is_alive(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def is_alive(process):
    # One that has ended is a zombie until whoever inherited it looks.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"cpus_per_engine": 999, "start_timeout_s": 5},
            TimeoutError,
            r"0 of 2 engines were ready in 5 s: asked for 2 x 999 CPU .*the cluster has .*start_timeout_s",
        ),
        (
            {"num_engines": 1, "cpu_kv_cache_gib": 100_000},
            EngineError,
            r"vLLM does not start with .*asked for 1 x 0\.25 CPU and 0 GPU, 100000 GiB of KV cache",
        ),
    ],
)
def test_an_engine_that_cannot_start_says_what_it_asked_for(pool, settings, error, message):
    with pytest.raises(error, match=message):
        pool(**settings).load(None)


def test_engines_that_leave_no_room_for_a_reader_say_so(pool, samples):
    cpus = ray.cluster_resources()["CPU"]
    engines = pool(cpus_per_engine=cpus, num_engines=1)
    engines.load(None)
    engines._engines = engines._engines.model_copy(update={"start_timeout_s": 3})
    with pytest.raises(TimeoutError, match=r"no room in 3 s .* for 1 x \(0\.25 CPU\): .*of it free 0 CPU"):
        next(engines.generate(samples, DIRECT))


def test_fewer_engines_than_asked_for_will_do(pool, samples):
    # The cluster has room for one of these only.
    cpus = ray.cluster_resources()["CPU"] * 0.6
    engines = pool(cpus_per_engine=cpus, num_engines=2, min_engines=1, batch_size=16)
    engines.load(None)
    answers = pa.concat_tables(engines.generate(samples, DIRECT))
    assert sorted(answers["id"].to_pylist()) == sorted(samples["id"].to_pylist())
    assert sum(member.serves for member in engines._members) == 1


def test_an_image_with_more_tokens_than_there_is_room_for_gets_its_error(pool, samples):
    engines = pool(num_engines=1, max_length=40)
    engines.load(None)
    [answers] = engines.generate(samples.slice(0, 2), DIRECT)
    for row in answers.to_pylist():
        assert row["error"].startswith(f"{row['id']}: ")
        assert "40" in row["error"]


def test_an_engine_with_another_image_size_is_stopped(pool, adapter, tmp_path):
    # The base as trained, but for the size that its processor gives to images.
    other = shutil.copytree(TINY_BASE, tmp_path / "other")
    processor = json.loads((other / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"longest_edge": 48}
    (other / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ParityError, match=r"(?s)does not compute .*prompts and image size"):
        pool(model=other, num_engines=1).load(adapter)
