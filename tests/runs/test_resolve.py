import re

import pytest

from rdmldg_ray.runs.resolve import parse_run, resolve_run, resolve_runs
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import write_bytes


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three runs, and a folder that is none."""
    for name in ("demo", "pacs-trial-0", "pacs-trial-1"):
        write_bytes(f"{tmp_path}/store/runs/{name}/config.yaml", b"")
    (tmp_path / "store/runs/pacs-notes").mkdir()
    monkeypatch.chdir(tmp_path)
    return f"{tmp_path}/store"


@pytest.mark.parametrize(
    ("named", "storage", "run"),
    [
        ("demo", "s3://bucket/x", RunStore("s3://bucket/x", "demo")),
        ("s3://bucket/x/runs/demo", None, RunStore("s3://bucket/x", "demo")),
        ("s3://bucket/x/runs/demo/", "elsewhere", RunStore("s3://bucket/x", "demo")),
        ("s3://bucket/runs/pacs-*", None, RunStore("s3://bucket", "pacs-*")),
        ("/data/store/runs/demo", None, RunStore("/data/store", "demo")),
    ],
)
def test_a_path_tells_the_storage_too(named, storage, run):
    assert parse_run(named, storage) == run
    assert run.uri.endswith(f"/runs/{run.name}")


@pytest.mark.parametrize("named", ["s3://bucket/demo", "s3://runs/demo", "store/demo", "/runs/demo", "runs/"])
def test_a_path_that_is_no_runs_folder_is_refused(named):
    with pytest.raises(
        ValueError, match=f"{re.escape(named)}: no run's folder; give a run's name, or a path"
    ):
        parse_run(named)


@pytest.mark.parametrize("named", ["..", ".", "a\\b", "/s/runs/..", "s3://bucket/runs/.\n"])
def test_what_is_no_name_of_a_folder_is_no_run(named):
    with pytest.raises(ValueError, match=r"the run .* cannot be named so|no run's folder"):
        parse_run(named, "store")


def test_a_run_is_meant_by_its_name_or_its_path(root, monkeypatch):
    demo = RunStore(root, "demo")
    assert resolve_run("demo", root) == demo == resolve_run("demo", "store")
    for path in ("store/runs/demo", "./store/runs/demo/", f"{root}/runs/demo"):
        assert resolve_run(path, "elsewhere") == demo
    monkeypatch.chdir(f"{root}/runs")
    assert resolve_run("./demo") == demo


def test_wildcards_mean_runs_and_each_is_taken_once(root):
    names = [run.name for run in resolve_runs(["pacs-*", "store/runs/*", "demo"], root)]
    assert names == ["pacs-trial-0", "pacs-trial-1", "demo"]
    assert resolve_run("d*", root).name == "demo"


def test_only_runs_with_results_can_be_meant(root):
    write_bytes(f"{root}/runs/pacs-notes/results.jsonl", b"")
    assert [run.name for run in resolve_runs(["pacs-*"], root, with_results=True)] == ["pacs-notes"]
    with pytest.raises(ValueError, match=r"demo: no run with results here"):
        resolve_runs(["demo"], root, with_results=True)


def test_several_runs_are_refused_where_one_is_wanted(root):
    with pytest.raises(ValueError, match=r"'pacs-\*' means 2 runs, and one is wanted: pacs-trial-0, pacs-"):
        resolve_run("pacs-*", root)


@pytest.mark.parametrize("named", ["dem", "pacs-notes", "gone-*"])
def test_a_run_that_is_not_there_is_named(root, named):
    with pytest.raises(ValueError, match="no run here; correct the run's name, or --storage") as error:
        resolve_run(named, root)
    assert str(error.value).startswith(f"{root}/runs/{named}:")
    assert ("did you mean 'demo'?" in str(error.value)) == (named == "dem")
