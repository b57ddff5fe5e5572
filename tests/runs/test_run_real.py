"""The whole method on a small real data set: Ray, DeepSpeed and vLLM, nothing replaced.

One run is unbroken and on the local disk, another is ended three times and has everything on object storage.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from rdmldg_ray.config.load import override_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.evaluation.predictions import accuracies
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore, Stage, State
from rdmldg_ray.storage import copy_folder, exists, join, list_files, read_bytes, read_table
from tests.helpers.adapters import WEIGHTS, without
from tests.helpers.finished_run import DATASET, SETTINGS
from tests.helpers.repository import ROOT
from tools import mini, s3_server

pytestmark = pytest.mark.slow

HELD_OUT = "flat"
# With one engine less, and in smaller batches, which changes no answer.
KILLED = [*SETTINGS, "name=killed", "engines.num_engines=1", "engines.batch_size=8"]


@pytest.fixture(scope="module")
def unbroken(finished_run):
    """The finished run."""
    results = finished_run.results
    config = override_config(results.config, [f"storage={results.root}"])
    return Run(config, read_dataset_info(results.root, DATASET), Console())


def test_every_stage_is_complete_and_nothing_remains(unbroken):
    assert list(unbroken.state()) == [stage.name for stage in unbroken.stages]
    assert unbroken.remaining() == []


def test_only_the_source_domains_in_parts_were_trained_on(unbroken):
    allowed = set()
    for number, domain in enumerate(unbroken.info.environments):
        if domain != HELD_OUT:
            folder = join(unbroken.config.storage, "datasets", DATASET, "samples", domain)
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


@dataclass(frozen=True)
class Killed:
    """A run on object storage that was ended in three stages, and then completed by ``rdmldg demo``."""

    store: RunStore
    done: State
    """What was complete when it was ended for the last time."""
    answered: dict[str, int]
    """Answers on storage when it was ended, by stage."""
    folder: Path
    """Where it ran; empty before."""


@pytest.fixture(scope="module")
def killed(unbroken, s3_root_of_module, tmp_path_factory):
    copy_folder(join(unbroken.config.storage, "datasets"), join(s3_root_of_module, "datasets"))
    store = RunStore(s3_root_of_module, "killed")
    folder = tmp_path_factory.mktemp("killed")
    zero_shot, draws = Stage(HELD_OUT, "evaluate", -1), Stage(HELD_OUT, "generate", 1)
    answered = {}

    end = partial(start_and_end, folder, s3_root_of_module)

    def has_answers(stage: Stage) -> Callable[[], object]:
        return lambda: list_files(store.answers_uri(stage), ".parquet")

    # Ctrl-C first, after which nothing is left of what it started.
    interrupted, started = end(has_answers(zero_shot), signal.SIGINT)
    assert interrupted.returncode == 130, log_of(folder).read_text()
    assert psutil.wait_procs(started, timeout=30)[1] == []
    answered[zero_shot.name] = len(read_table(store.answers_uri(zero_shot)))
    end(lambda: exists(store.metrics_uri(HELD_OUT, "mtct")), signal.SIGKILL)
    end(has_answers(draws), signal.SIGKILL)
    answered[draws.name] = len(read_table(store.answers_uri(draws)))
    done = store.state()
    rdmldg(folder, "demo", *KILLED, "--storage", s3_root_of_module)
    return Killed(store, done, answered, folder)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command in a folder. What it prints goes to ``log_of``, since what it starts may outlive it."""
    # Its own cluster, though the test may run where RAY_ADDRESS is set.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "rdmldg_ray", *arguments]
    with log_of(folder).open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def rdmldg(folder: Path, *arguments: str) -> None:
    assert start(folder, *arguments).wait(timeout=600) == 0, log_of(folder).read_text()


def start_and_end(
    folder: Path, storage: str, reached: Callable[[], object], number: signal.Signals
) -> tuple["subprocess.Popen[bytes]", list[psutil.Process]]:
    """Send a signal to a run once it has reached a stage; returns it, and what it had started."""
    process = start(folder, "run", "demo", *KILLED, "--storage", storage)
    deadline = time.monotonic() + 900  # it hangs
    while not reached():
        assert process.poll() is None, log_of(folder).read_text()
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.5)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait()
    return process, started


def test_a_run_that_is_ended_thrice_is_the_unbroken_one(unbroken, killed):
    state = killed.store.state()
    assert list(state) == list(unbroken.state())
    assert {name: state[name] for name in killed.done} == killed.done, "a stage was done twice"
    for name, entry in unbroken.state().items():
        assert state[name].get("accuracy") == entry.get("accuracy"), name


def test_no_answer_that_was_there_is_asked_for_again(killed):
    said = log_of(killed.folder).read_text()
    for stage, answers in killed.answered.items():
        assert f"{answers} answers were there, and were not asked for" in said, stage
    assert list_files(join(killed.store.uri, HELD_OUT, "answers")) == []


def test_the_demo_runs_with_everything_on_object_storage(killed):
    assert "flat/evaluation/sarr-1" in killed.store.state()
    there = list_files(killed.store.uri)
    for part in ("/mtct/adapter/", "/mtct/checkpoints/", "/sarr-1/candidates/", "/evaluation/sarr-1/"):
        assert any(part in file for file in there), part

    root = ["--storage", killed.store.root]
    rdmldg(killed.folder, "demo", *KILLED, *root)
    assert "run 'killed' is complete; nothing to do" in log_of(killed.folder).read_text()
    rdmldg(killed.folder, "show", "killed", *root, "--limit", "1")
    rdmldg(killed.folder, "export", "killed", "--out", "exported", *root)
    assert (killed.folder / "exported/model.safetensors").exists()
    # What goes to storage does not also come here, and credentials go nowhere.
    assert [path.name for path in killed.folder.iterdir()] == ["exported"]
    printed = log_of(killed.folder).read_text()
    for secret in (s3_server.SECRET_KEY, s3_server.ACCESS_KEY):
        assert secret not in printed
        assert not any(secret.encode() in read_bytes(file) for file in there)


def test_an_engine_that_does_not_compute_what_was_trained_is_stopped(unbroken, tmp_path):
    from rdmldg_ray.engines.pool import EnginePool
    from rdmldg_ray.models.parity import ParityError

    trained = Path(unbroken.location, HELD_OUT, "mtct", "adapter")
    # For all that may go wrong see tests/models/test_parity_failures.py.
    broken = shutil.copytree(trained, tmp_path / "broken")
    save_file(without("vision_model")(load_file(broken / WEIGHTS)), broken / WEIGHTS)
    one = override_config(unbroken.config, ["engines.num_engines=1"])
    pool = EnginePool(one, list(unbroken.info.classes))
    try:
        report = pool.load(str(trained))
        assert report.how == "start"
        assert report.parity < 1e-3
        with pytest.raises(ParityError, match="does not compute what was trained"):
            pool.load(str(broken))
        assert pool.load(str(trained)).how == "reload"
    finally:
        pool.close()
