"""The whole method on a small real data set: Ray, DeepSpeed and vLLM, nothing replaced."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.evaluation.predictions import accuracies
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import exists, join, read_table
from tools import mini

pytestmark = pytest.mark.slow

HELD_OUT = "flat"


def make_config(storage: str, name: str) -> Config:
    return load_config("demo", [*mini.SETTINGS, f"storage={storage}", f"name={name}"])


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("mini"))
    mini.write_mini(root)
    return root


@pytest.fixture(scope="module")
def unbroken(storage, ray_cluster):
    """A finished run."""
    config = make_config(storage, "unbroken")
    pipeline = Run(config, read_dataset_info(storage, "mini"), Console())
    pipeline.prepare()
    pipeline.run()
    return pipeline


def test_every_stage_is_complete_and_nothing_remains(unbroken):
    assert list(unbroken.state()) == [stage.name for stage in unbroken.stages]
    assert unbroken.remaining() == []


def test_only_the_source_domains_in_parts_were_trained_on(unbroken):
    allowed = set()
    for number, domain in enumerate(unbroken.info.environments):
        if domain != HELD_OUT:
            folder = join(unbroken.config.storage, "datasets/mini/samples", domain)
            index = read_table(folder, ["id", "index"])
            kept, _ = split_indices(len(index), 0, number, 0.2)
            allowed |= {row["id"] for row in index.to_pylist() if row["index"] in set(kept)}
    for file in ("mtct/training_set.parquet", "sarr-1/training_set.parquet", "sarr-1/candidates"):
        ids = read_table(join(unbroken.location, HELD_OUT, file), ["id"])["id"].to_pylist()
        assert ids
        assert set(ids) <= allowed


def test_every_source_image_was_drawn_until_accepted(unbroken):
    candidates = read_table(join(unbroken.location, HELD_OUT, "sarr-1/candidates")).to_pylist()
    drawn: dict[str, list[dict]] = {}
    for row in candidates:
        drawn.setdefault(row["id"], []).append(row)
    assert len(drawn) == 48
    for rows in drawn.values():
        rows.sort(key=lambda row: row["candidate"])
        assert [row["candidate"] for row in rows] == list(range(len(rows)))
        assert not any(row["accepted"] for row in rows[:-1])
        assert rows[-1]["accepted"] or len(rows) == 3
    for row in candidates:
        assert row["accepted"] == (row["reason"] is None)
        assert not row["accepted"] or row["conclusion"] == row["label"]


def test_adapters_sit_on_both_towers_and_were_trained(unbroken):
    for stage in ("mtct", "sarr-1"):
        folder = Path(unbroken.location, HELD_OUT, stage, "adapter")
        weights = load_file(folder / "adapter_model.safetensors")
        for part in ("vision_model", "text_model"):
            # The second matrix starts at zero: what is not zero has been trained.
            grown = [w.abs().max() > 0 for name, w in weights.items() if part in name and "lora_B" in name]
            assert grown
            assert all(grown)


def test_a_checkpoint_holds_what_is_trained_and_no_base_weights(unbroken):
    stage = Path(unbroken.location, HELD_OUT, "mtct")
    files = [file for file in stage.glob("checkpoints/checkpoint_*/**/*") if file.is_file()]
    assert files
    size = sum(file.stat().st_size for file in files)
    # The adapter, and for Adam two more numbers for each of its weights.
    adapter = (stage / "adapter/adapter_model.safetensors").stat().st_size
    assert 3 * adapter < size < 3.3 * adapter


def test_both_pathways_answered_for_every_image(unbroken):
    for model in ("zero-shot", "mtct", "sarr-1"):
        folder = join(unbroken.location, HELD_OUT, "evaluation", model)
        predictions = read_table(join(folder, "predictions.parquet"))
        rows = predictions.to_pylist()
        # 30 target images and a fifth of 30 in each of two source domains, by both pathways.
        assert len(rows) == 2 * (30 + 2 * 6)
        assert len({(row["id"], row["pathway"]) for row in rows}) == len(rows)
        assert accuracies(predictions) == unbroken.state()[f"{HELD_OUT}/evaluation/{model}"]["accuracy"]
        answers = {row["prediction"] for row in rows if row["pathway"] == "direct"}
        assert answers <= set(mini.CLASSES)


def test_a_run_killed_in_two_stages_ends_like_the_unbroken_one(unbroken, storage):
    store = RunStore(make_config(storage, "killed").storage, "killed")
    location = Path(store.uri)

    def in_mtct() -> bool:
        return exists(str(location / HELD_OUT / "mtct/metrics.jsonl"))

    def in_candidates() -> bool:
        return f"{HELD_OUT}/evaluation/mtct" in store.state()

    for reached in (in_mtct, in_candidates):
        _start_and_kill(storage, reached)
    done = store.state()
    finished = _start(storage)
    assert finished.wait(timeout=400) == 0
    state = store.state()
    assert list(state) == list(unbroken.state())
    assert {name: state[name] for name in done} == done, "a stage was done twice"
    for name, entry in unbroken.state().items():
        assert state[name].get("accuracy") == entry.get("accuracy"), name


def _start(storage: str) -> "subprocess.Popen[bytes]":
    settings = [*mini.SETTINGS, "name=killed"]
    command = [sys.executable, "-m", "rdmldg_ray", "run", "demo", *settings, "--storage", storage]
    # Its own cluster, though the test may run where RAY_ADDRESS is set.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(command, env=environment)


def _start_and_kill(storage: str, reached) -> None:
    process = _start(storage)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the run ended before the stage was reached"
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.5)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_an_engine_that_does_not_compute_what_was_trained_is_stopped(unbroken, tmp_path):
    from rdmldg_ray.engines.pool import EnginePool
    from rdmldg_ray.models.parity import ParityError

    trained = Path(unbroken.location, HELD_OUT, "mtct", "adapter")
    pool = EnginePool(unbroken.config, list(unbroken.info.classes))
    try:
        report = pool.load(str(trained))
        assert report.how == "start"
        assert report.parity < 1e-3
        for name, broken in (("no-vision", _without_vision), ("permuted", _permuted)):
            adapter = shutil.copytree(trained, tmp_path / name)
            weights = load_file(adapter / "adapter_model.safetensors")
            save_file(broken(weights), adapter / "adapter_model.safetensors")
            with pytest.raises(ParityError, match="does not compute what was trained"):
                pool.load(str(adapter))
        assert pool.load(str(trained)).how == "reload"
    finally:
        pool.close()
    # The same weights under another prompt.
    other = EnginePool(unbroken.config, list(reversed(unbroken.info.classes)))
    try:
        with pytest.raises(ParityError, match="check that engine and trainer use the same base, prompts"):
            other.load(str(trained))
    finally:
        other.close()


def _without_vision(weights):
    return {name: w * 0 if "vision_model" in name else w for name, w in weights.items()}


def _permuted(weights):
    """Each decoder layer gets the next one's adapter, as after a wrong renaming of modules."""
    layers = sorted({name.split("layers.")[1].split(".")[0] for name in weights if "text_model" in name})
    following = dict(zip(layers, layers[1:] + layers[:1], strict=True))

    def source(name: str) -> str:
        if "text_model" not in name:
            return name
        head, tail = name.split("layers.")
        layer, rest = tail.split(".", 1)
        return f"{head}layers.{following[layer]}.{rest}"

    return {name: weights[source(name)].clone() for name in weights}
