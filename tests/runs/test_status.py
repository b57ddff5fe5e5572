import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.runs.status import run_status
from rdmldg_ray.runs.store import RunStore, write_fold_state
from rdmldg_ray.runtime.progress import ProgressFile, progress_bar
from rdmldg_ray.storage import read_json
from tests.helpers.run_files import write_run

STAGES = [
    "evaluation/zero-shot",
    "mtct",
    "evaluation/mtct",
    "sarr-1/candidates",
    "sarr-1",
    "evaluation/sarr-1",
]


@pytest.fixture
def run(store, tmp_path):
    """A root with a run of one round over two folds, of which the first is complete."""
    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    write_run(str(tmp_path), data={"held_out": ["flat", "sketch"]}, sarr={"rounds": 1})
    return str(tmp_path)


def rdmldg(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_a_run_in_its_second_fold(run):
    ProgressFile(f"{run}/runs/small/sketch/evaluation/zero-shot").write(3, 12, "direct")
    found = run_status(run, "small")
    assert [stage.name for stage in found.stages] == [f"{d}/{s}" for d in ("flat", "sketch") for s in STAGES]
    assert [stage.status for stage in found.stages] == ["complete"] * 6 + ["running"] + ["waiting"] * 5
    running = found.stages[6]
    assert (running.done, running.total, running.text) == (3, 12, "direct")
    # Stages take what those of their kind took: 5 + 20 + 5 + 7 + 20 + 5 s in the first fold.
    assert found.eta_s == 62 and not found.complete


def test_as_json_and_as_lines(run):
    told = json.loads(rdmldg("status", "small", "--storage", run, "--json").stdout)
    assert told["name"] == "small" and len(told["stages"]) == 12
    lines = rdmldg("status", "small", "--storage", run).output
    assert "flat/mtct" in lines and "complete" in lines and "time left: 0:01:02" in lines


def test_a_complete_run(run):
    store = RunStore(run, "small")
    entries = store.fold_state("flat")
    mine = {name.replace("flat", "sketch"): entry for name, entry in entries.items()}
    write_fold_state(store, "sketch", mine)
    found = run_status(run, "small")
    assert found.complete and found.eta_s == 0


def test_no_time_is_told_before_a_stage_of_its_kind_was_seen(run):
    write_fold_state(RunStore(run, "small"), "flat", {})
    assert run_status(run, "small").eta_s is None


def test_a_run_that_is_not_there_is_named(tmp_path):
    result = rdmldg("status", "none", "--storage", str(tmp_path))
    assert result.exit_code == 2 and "no run here; correct the run's name, or --storage" in result.stderr


def test_a_bar_leaves_word_for_those_who_look_from_elsewhere(tmp_path):
    with progress_bar(Console(quiet=True), "chains", str(tmp_path)) as bar:
        bar.update(4, 8, "a")
        bar.update(8, 8, "b")
    told = read_json(f"{tmp_path}/progress.json")
    assert (told["done"], told["total"], told["text"]) == (8, 8, "b") and told["eta_s"] == 0
