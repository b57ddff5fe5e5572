"""Training through Ray Train and DeepSpeed: what must not change the result does not."""

import json
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from ray.util import placement_group_table
from safetensors.torch import load_file
from torch.utils.cpp_extension import _get_build_directory

from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import chains_location, read_dataset_info
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.storage import read_table
from tools import mini

pytestmark = pytest.mark.slow

STEPS = 20
# Twelve images a step, all at once in one worker, with checkpoints on the way.
WHOLE = (
    "mtct.batch_size=12",
    "mtct.micro_batch_size=12",
    "mtct.epochs=4",
    "mtct.checkpoint_every=3",
    "workers.num_workers=1",
)


@pytest.fixture(scope="module", autouse=True)
def lock():
    """A lock of torch's on an extension of DeepSpeed's, as a process that is killed leaves it."""
    file = Path(_get_build_directory("deepspeed_shm_comm", verbose=False), "lock")
    file.touch()
    yield
    file.unlink()


@pytest.fixture(scope="module")
def train(ray_cluster, tmp_path_factory):
    """Train on the mini data set, once under a name, and return the stage's folder."""
    root = str(tmp_path_factory.mktemp("training"))
    mini.write_mini(root)
    info = read_dataset_info(root, "mini")
    location = chains_location(root, "mini", "rules")
    training_set = attach_chains(
        sample_index(root, info, ["paint", "sketch"]), read_table(location), location
    )

    def train(name, *overrides, class_names=info.classes):
        from rdmldg_ray.mtct.trainer import train_stage

        exact = ["model.mixed_precision=false", "data.augment=none"]
        settings = [*exact, "mtct.warmup_ratio=0", "mtct.epochs=1", "mtct.learning_rate=1e-3"]
        settings += [f"storage={root}"]
        config = load_config("demo", [*settings, *overrides])
        stage = f"{root}/{name}"
        if Path(stage, "adapter").exists():
            return Path(stage)
        train_stage(config, config.mtct, training_set, list(class_names), stage, None, "paint/mtct", seed=0)
        return Path(stage)

    return train


def adapter(stage, file="adapter_model.safetensors"):
    weights = load_file(stage / "adapter" / file)
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def relative_difference(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def metrics(stage):
    file = stage / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    "settings", [("workers.zero_stage=2", "mtct.micro_batch_size=3"), ("workers.zero_stage=3",)]
)
def test_the_trajectory_is_the_same_however_batch_and_optimizer_are_cut(train, settings):
    whole = train("whole", *WHOLE)
    assert len(metrics(whole)) == STEPS
    spread = [*WHOLE, "mtct.micro_batch_size=6", "workers.num_workers=2", *settings]
    sharded = train(f"spread-{settings[0][-1]}", *spread)
    assert relative_difference(adapter(sharded), adapter(whole)) < 1e-4


def test_parts_have_learning_rates_of_their_own_whatever_is_sharded(train):
    slow = [f"mtct.learning_rates.{part}=1e-12" for part in ("vision", "connector")]
    one_step = ["mtct.batch_size=60", "mtct.micro_batch_size=15", "workers.num_workers=1"]
    stage = train("rates", *one_step, *slow, "workers.zero_stage=1")
    weights = load_file(stage / "adapter" / "adapter_model.safetensors")
    # The second matrix of an adapter begins at zero.
    moved = {name: float(matrix.abs().max()) for name, matrix in weights.items() if "lora_B" in name}
    decoder = [size for name, size in moved.items() if ".text_model." in name]
    others = [size for name, size in moved.items() if ".text_model." not in name]
    assert min(decoder) > 1e-5 and others and max(others) < 1e-10
    assert json.loads(metrics(stage)[0])["learning_rate"] == pytest.approx(1e-3)


def test_full_fine_tuning_is_the_same_in_parts_and_with_activations_computed_again(train):
    settings = ["mtct.batch_size=12", "mtct.micro_batch_size=6", "mtct.learning_rate=1e-4"]
    settings += ["lora.enabled=false", "lora.parts=[decoder]"]
    plain = train("full", *settings, "workers.num_workers=1")
    sharded = train("full-zero-3", *settings, "workers.zero_stage=3", "workers.gradient_checkpointing=true")
    weights = [adapter(stage, "trained.safetensors") for stage in (plain, sharded)]
    base = load_file(TINY_BASE / "model.safetensors")
    decoder = sum(w.numel() for name, w in base.items() if name.startswith("model.text_model."))
    assert weights[0].numel() == decoder, "embeddings are shared with the output layer"
    assert relative_difference(weights[1], weights[0]) < 1e-5
    checkpoints = [file for file in plain.rglob("checkpoints/**/*") if file.is_file()]
    assert sum(file.stat().st_size for file in checkpoints) < 1.1 * 12 * decoder, "nothing frozen is saved"


def test_a_worker_killed_in_mid_epoch_changes_nothing(train):
    settings = [*WHOLE, "mtct.micro_batch_size=6", "workers.num_workers=2", "workers.zero_stage=1"]
    settings += ["lora.dropout=0.1"]  # each rank draws for itself
    unbroken = train("unbroken", *settings)
    killed: list[int] = []
    thread = threading.Thread(target=_kill_a_worker, args=(unbroken.parent / "killed", killed))
    thread.start()
    broken = train("killed", *settings)
    thread.join()
    assert killed, "the training ended before a worker could be killed"
    assert len(metrics(broken)) == len(metrics(unbroken)) == STEPS
    assert json.loads(metrics(broken)[-1])["resumed_at"] > 0
    assert relative_difference(adapter(broken), adapter(unbroken)) < 1e-5


def reserved():
    """The placement groups that hold resources of the cluster, or wait for them."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def train_workers():
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("RayTrainWorker" in part for part in process.cmdline())
    ]


def _take_a_workers_memory(stage: Path, taken: list[int]) -> None:
    """Allow one rank no more memory than it has, once the first checkpoint is on storage."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (stage / "adapter").exists():
        if len(metrics(stage)) >= 6:
            for process in train_workers():
                process.rlimit(psutil.RLIMIT_DATA, (2**20, 2**20))
                taken.append(process.pid)
                return
        time.sleep(0.2)


def test_a_worker_without_memory_goes_on_with_fewer_images_at_once(train, caplog):
    whole = train("whole", *WHOLE)
    taken: list[int] = []
    thread = threading.Thread(target=_take_a_workers_memory, args=(whole.parent / "little-memory", taken))
    thread.start()
    short = train("little-memory", *WHOLE)
    thread.join()
    assert taken, "the training ended before its memory could be taken"
    assert "out of memory with 12 images" in caplog.text
    assert "resuming from the last checkpoint with micro_batch_size 6" in caplog.text
    assert len(metrics(short)) == STEPS
    assert json.loads(metrics(short)[-1])["resumed_at"] > 0
    assert relative_difference(adapter(short), adapter(whole)) < 1e-5


def _kill_a_worker(stage: Path, killed: list[int]) -> None:
    """Kill one rank once the first checkpoint is on storage."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (stage / "adapter").exists():
        # Written before the first checkpoint is committed; the second time, one is.
        if len(metrics(stage)) >= 6:
            for process in train_workers():
                process.kill()
                killed.append(process.pid)
                return
        time.sleep(0.2)


class _EndsItsFirstReader(str):
    """A class name that ends the first train worker to unpickle it; the marker goes as well."""

    def __new__(cls, name, marker):
        made = super().__new__(cls, name)
        made.marker = str(marker)
        return made

    def __reduce__(self):
        # In words, since workers cannot import this module.
        worker = "'RayTrainWorker' in open('/proc/self/cmdline').read()"
        there = f"{worker} and __import__('os').path.exists(marker)"
        end = "[__import__('os').remove(marker), __import__('os').kill(__import__('os').getpid(), 9)]"
        return eval, (f"{end} if {there} else name", {"marker": self.marker, "name": str(self)})


def test_a_worker_killed_while_it_is_given_its_work_changes_nothing(train, tmp_path, caplog):
    marker = tmp_path / "marker"
    marker.touch()
    names = [_EndsItsFirstReader(name, marker) for name in mini.CLASSES]
    broken = train("killed-at-once", *WHOLE, class_names=names)
    assert not marker.exists()
    # Ray Train does not get over this by itself.
    assert "training ended, and resumes from its last checkpoint" in caplog.text
    assert reserved() == []
    assert relative_difference(adapter(broken), adapter(train("whole", *WHOLE))) < 1e-5
