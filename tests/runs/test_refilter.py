"""Filtering a stored run anew: on local disk, without torch or Ray."""

import os
import subprocess
import sys

import pyarrow as pa
import pytest
from rich.console import Console

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info
from rdmldg_ray.runs.refilter import refilter_run
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA
from rdmldg_ray.sarr.selection import select_chains, write_candidates
from rdmldg_ray.storage import exists, list_files, read_bytes, read_json, read_table, write_bytes

STRICTER = "sarr.filter.min_logprob=-0.4"


def candidates(logprobs):
    text = render_chain({**dict.fromkeys(SECTIONS, "words"), "CONCLUSION": "bird"})
    rows = [
        {
            "id": f"iconbed/flat/bird/{number}.png",
            "label": "bird",
            "domain": "flat",
            "candidate": 0,
            "text": text,
            "conclusion": "bird",
            "num_tokens": 10,
            "finished": True,
            "mean_logprob": logprob,
            "label_prob": 0.5,
            "repetition": 0.0,
        }
        for number, logprob in enumerate(logprobs)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)


def pipeline(root, name, *overrides):
    overrides = ["data.held_out=paint", "sarr.rounds=2", f"name={name}", f"storage={root}", *overrides]
    return Run(load_config("demo", overrides), iconbed_info(), Console(quiet=True))


@pytest.fixture
def old(root, info):
    """A finished run of two rounds, in which files stand for what training and evaluation leave."""
    from rdmldg_ray.datasets.builtin.iconbed import write_iconbed

    write_iconbed(root)
    run = pipeline(root, "old")
    run.prepare()
    for stage in run.stages:
        folder = f"{run.location}/{stage.name}"
        summary = {}
        if stage.kind == "generate":
            round_ = folder.removesuffix("/candidates")
            write_candidates(round_, 0, candidates([-0.2, -0.5] if stage.round == 1 else [-0.1, -0.9]))
            summary = select_chains(round_, round_, list(info.classes), run.config.sarr)
        elif stage.kind == "evaluate":
            write_bytes(f"{folder}/metrics.json", b"{}")
        else:
            write_bytes(f"{folder}/adapter/adapter_config.json", f"of {stage.name}".encode())
            write_bytes(f"{folder}/checkpoints/1/optimizer.pt", b"large")
        run.store.enter(stage, {"seconds": 1.0, **summary})
    return run


def files(location):
    return {file: read_bytes(file) for file in list_files(location)}


def test_the_new_run_has_the_new_kept_set_and_the_old_run_is_as_it_was(old, root):
    before = files(old.location)
    name, state = refilter_run(root, "old", None, [STRICTER], 1)
    assert files(old.location) == before
    kept = read_table(f"{root}/runs/{name}/paint/sarr-1/selected")
    assert kept["mean_logprob"].to_pylist() == [-0.2]
    assert state["paint/sarr-1/candidates"]["rejected"] == {"low_logprob": 1}
    assert state == RunStore(root, name).state()


def test_the_new_run_goes_on_with_the_rounds_training(old, root):
    name, _ = refilter_run(root, "old", None, [STRICTER], 1)
    new = pipeline(root, name, STRICTER)
    new.check_settings()
    assert [stage.name for stage in new.remaining()] == [
        "paint/sarr-1",
        "paint/evaluation/sarr-1",
        "paint/sarr-2/candidates",
        "paint/sarr-2",
        "paint/evaluation/sarr-2",
    ]
    assert read_bytes(f"{new.location}/paint/mtct/adapter/adapter_config.json") == b"of paint/mtct"
    assert not [file for file in list_files(new.location) if "/checkpoints/" in file]
    assert not [file for file in list_files(new.location) if "/sarr-1/adapter/" in file]


def test_a_later_round_takes_the_earlier_ones_as_they_are(old, root):
    name, state = refilter_run(root, "old", "later", [STRICTER], 2)
    assert name == "later"
    assert state["paint/sarr-1/candidates"] == old.state()["paint/sarr-1/candidates"]
    for round_, kept in ((1, [-0.2, -0.5]), (2, [-0.1])):
        found = read_table(f"{root}/runs/later/paint/sarr-{round_}/selected")
        assert found["mean_logprob"].to_pylist() == kept
    remaining = [stage.name for stage in pipeline(root, "later", STRICTER).remaining()]
    assert remaining == ["paint/sarr-2", "paint/evaluation/sarr-2"]
    assert read_json(f"{root}/runs/later/refiltered.json") == {
        "run": "old",
        "round": 2,
        "settings": [STRICTER],
    }


def test_names_are_found_and_never_taken_twice(old, root):
    names = [refilter_run(root, "old", None, [STRICTER], 1)[0] for _ in range(2)]
    assert names == ["old-refiltered", "old-refiltered-2"]
    with pytest.raises(ValueError, match="old-refiltered: exists already; give another name with --into"):
        refilter_run(root, "old", "old-refiltered", [STRICTER], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("old", None, ["sarr.rounds=1"], 1), ConfigError, "'sarr.rounds=1' is no setting of the filter"),
        (("old", None, ["sarr.filter.min_logprop=-1"], 1), ConfigError, "did you mean 'min_logprob'"),
        (("old", None, [STRICTER], 3), ValueError, "no complete candidates of round 3 to filter"),
        (("older", None, [STRICTER], 1), ValueError, "runs/older: no run here"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(old, root, arguments, error, message):
    with pytest.raises(error, match=message):
        refilter_run(root, *arguments)
    assert not [file for file in list_files(f"{root}/runs") if not file.startswith(f"{old.location}/")]


# Through the door, in a fresh interpreter.

COMMAND = """
import sys
from typer.testing import CliRunner
from rdmldg_ray.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
heavy = [name for name in ("torch", "ray", "transformers", "vllm") if name in sys.modules]
print(result.output, result.exit_code, heavy)
"""


def test_the_command_prints_what_is_kept_and_how_to_go_on_and_imports_nothing_heavy(old, root):
    arguments = ["refilter", "old", STRICTER, "--into", "new", "--storage", root]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "1 of 2 images have a chain, 20 tokens for each; 1 of 2 candidates pass the filter" in done.stdout
    assert f"rdmldg run <recipe of old> name=new {STRICTER}" in done.stdout
    assert done.stdout.endswith("0 []\n")
    assert exists(f"{root}/runs/new/paint/sarr-1/rejections.parquet")
