"""Wherever a run is asked for, its name, a path of its folder and wildcards will do."""

import json

import pytest

from rdmldg_ray.datasets.builtin.iconbed import write_iconbed
from tests.helpers.cli import error_of, rdmldg
from tests.helpers.run_files import write_run

RECORD = {
    "args": {
        "dataset": "IconBed",
        "algorithm": "RD-MLDG (direct)",
        "trial_seed": 0,
        "hparams_seed": 0,
        "test_envs": [0],
    },
    "step": 0,
    "env0_in_acc": 0.5,
    "env0_out_acc": 0.5,
    "env1_out_acc": 0.5,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A storage with two runs, ``small`` and ``small-too``."""
    root = tmp_path_factory.mktemp("named")
    write_iconbed(str(root / "store"))
    for name in ("small", "small-too"):
        write_run(str(root / "store"), name)
    return root


@pytest.mark.parametrize("command", ["status", "show", "analyze adaptive"])
def test_one_run_is_given_by_its_path_or_by_a_wildcard_that_means_no_other(root, monkeypatch, command):
    monkeypatch.chdir(root)
    documents = []
    for run in (
        ["store/runs/small"],
        ["store/runs/small/"],
        ["small", "--storage", "store"],
        ["store/runs/s*l"],
    ):
        result = rdmldg(*command.split(), *run, "--json")
        assert result.exit_code == 0, result.output
        documents.append(json.loads(result.stdout))
    assert all(document == documents[0] for document in documents)


@pytest.mark.parametrize(
    "command",
    ["status", "show", "export --out {}/out", "calibrate --out {}/out", "refilter x=1", "analyze rejected"],
)
def test_several_runs_are_refused_where_one_is_wanted(root, command):
    words = command.format(root).split()
    place = 2 if words[0] == "analyze" else 1
    message = error_of(*words[:place], "small*", *words[place:], "--storage", str(root / "store"))
    assert message == "'small*' means 2 runs, and one is wanted: small, small-too"
    assert not (root / "out").exists()


@pytest.mark.parametrize("runs", [["small*"], ["small", "small-too"], ["{}/runs/small*", "small"]])
def test_a_report_takes_several_runs(root, runs):
    pytest.importorskip("matplotlib")
    out, store = root / "page.html", str(root / "store")
    result = rdmldg(
        "report", *[run.format(store) for run in runs], "--out", str(out), "--storage", store, "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": str(out), "bytes": out.stat().st_size}
    assert "small-too" in out.read_text()


def test_tables_are_collected_from_paths_with_wildcards(root):
    for trial in (0, 1):
        folder = root / f"store/runs/trial-{trial}"
        folder.mkdir()
        (folder / "results.jsonl").write_text(json.dumps(RECORD) + "\n")
    from rdmldg_ray.api import collect

    files = [f"{root}/store/runs/trial-{trial}/results.jsonl" for trial in (0, 1)]
    assert (
        list(collect([f"{root}/store/runs/trial-*", "trial-1", files[0]], storage=f"{root}/store")) == files
    )
