"""Commands on a run that another works on: those that compute are refused, those that read are not."""

import json
import os
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import list_files, read_bytes, write_bytes
from rdmldg_ray.sweeps.sweep_plan import sweep_lease
from tests.helpers.run_files import write_run

QUIET = Console(quiet=True)


@pytest.fixture
def root(store, tmp_path):
    """A storage with a run of two folds, of which the second is not complete."""
    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    write_run(str(tmp_path), data={"held_out": ["flat", "sketch"]}, sarr={"rounds": 1})
    return str(tmp_path)


def rdmldg(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture
def held(root):
    """The same, while its second fold is worked on."""
    with RunStore(root, "small").lease("sketch", QUIET).held():
        yield root


def test_a_second_run_ends_at_once_with_who_works_on_it(held):
    recipe = f"{held}/mine.yaml"
    write_bytes(recipe, read_bytes(f"{held}/runs/small/config.yaml"))
    before = list_files(held)
    result = rdmldg("run", recipe, "--storage", held)
    assert result.exit_code == 2, result.output
    told = result.stderr
    assert "error: run 'small', fold sketch: " in told and f"(process {os.getpid()}" in told
    assert f"`rdmldg status {held}/runs/small --watch`" in told and told.count("\n") == 1
    assert list_files(held) == before


def test_its_status_names_the_holder(held):
    told = json.loads(rdmldg("status", "small", "--storage", held, "--json").stdout)
    assert told["holders"]["sketch"]["pid"] == os.getpid() and list(told["holders"]) == ["sketch"]
    lines = rdmldg("status", "small", "--storage", held).output
    assert "sketch: " in lines and f"(process {os.getpid()}" in lines and "works on it since 20" in lines


def test_without_a_lease_nobody_works_on_it(root):
    assert json.loads(rdmldg("status", "small", "--storage", root, "--json").stdout)["holders"] == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_damaged_lease_is_no_obstacle_to_reading(root, content):
    write_bytes(f"{root}/runs/small/sketch/lease.json", content)
    assert rdmldg("status", "small", "--storage", root).exit_code == 0


@pytest.mark.parametrize(
    "command",
    ["status small", "show small", "analyze rejected small", "report small --out {}/r.html"],
)
def test_commands_that_read_need_no_lease(held, command):
    result = rdmldg(*command.format(held).split(), "--storage", held)
    assert result.exit_code == 0, result.output


def test_two_do_not_refilter_into_one_run(root):
    arguments = ["refilter", "small", "sarr.filter.max_tokens=20", "--into", "new", "--storage", root]
    with RunStore(root, "new").lease("flat", QUIET).held():
        result = rdmldg(*arguments)
    assert result.exit_code == 2 and "run 'new', fold flat: " in result.stderr
    assert not RunStore(root, "new").exists()


def test_a_second_command_on_a_sweep_ends_at_once(root):
    write_bytes(f"{root}/space.yaml", b"search: grid\nsettings: {sarr.filter.max_tokens: [10, 20]}\n")
    config = load_config("demo", [f"storage={root}"])
    with sweep_lease(config, QUIET).held():
        result = rdmldg("sweep", "demo", "--space", f"{root}/space.yaml", "--storage", root)
    assert result.exit_code == 2, result.output
    assert "error: sweep 'demo': " in result.stderr and "rdmldg report 'demo-*'" in result.stderr
