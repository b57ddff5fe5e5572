"""With --json, stdout is one JSON document; what is meant for people goes to stderr."""

import json
import shutil

import pytest

from tests.helpers import sweep_records as made
from tests.helpers.cli import rdmldg
from tests.helpers.run_files import write_run
from tools import mini


@pytest.fixture(scope="module")
def root(store, tmp_path_factory):
    """A run on IconBed, and two with DomainBed's records."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(f"{store}/datasets", root / "datasets")
    mini.write_mini(str(root))
    write_run(str(root))
    for trial in (0, 1):
        records = [r for r in made.sweep_records() if r["args"]["trial_seed"] == trial]
        folder = root / f"runs/pacs-trial-{trial}"
        folder.mkdir()
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(root)


def told(root, *arguments):
    """The document that a command prints."""
    result = rdmldg(*arguments, "--json", *(("--storage", root) if root else ()))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_plan(root):
    plan = told(root, "run", "demo", "--trials", "0,1", "--dry-run")
    assert [run["name"] for run in plan["runs"]] == ["demo-trial-0", "demo-trial-1"]
    first = plan["runs"][0]
    assert first["config"]["mtct"]["epochs"] == 4 and "estimate" not in first
    assert first["stages"][1] == {"name": "sketch/mtct", "images": 690, "steps": 176, "complete": False}
    assert [run["name"] for run in told(root, "ablate", "demo", "--dry-run")["runs"]] == [
        "demo-both",
        "demo-labels",
        "demo-chains",
        "demo-unfiltered",
    ]
    sweep = told(root, "sweep", "demo", "--space", "filters", "--dry-run")
    assert (sweep["trials"], sweep["stages"]["mtct"]) == (12, {"stages": 12, "computed": 1})


def test_a_plan_notes_what_is_not_here(root):
    def notes(*settings):
        [run] = told(root, "run", "demo", *settings, "--dry-run")["runs"]
        return run["notes"]

    assert notes() == []
    model, chains = notes("data.chains=nobody", "model.path=./nowhere")
    assert model.endswith("nowhere: no such model folder; give 'tiny', a folder or a hub id")
    assert "chains/nobody: no chains for flat, gradient, paint; choose another teacher" in chains
    labels_only = ("mtct.weights.reasoning=0", "sarr.rounds=0", "evaluation.pathways=[direct]")
    assert notes("data.chains=nobody", *labels_only) == []


def test_chains(root):
    shown = told(root, "show", "small", "--verdict", "rejected", "--limit", "2")
    assert len(shown["chains"]) == 2 < shown["count"]
    assert {row["reason"] for row in shown["chains"]} == {"wrong_class"}


def test_tables(root):
    found = told(root, "collect", "pacs-*")
    assert found["records"] == 336
    row = next(row for row in found["chosen"] if row["method"].startswith("training"))
    assert row["dataset"] == "PACS" and row["test_domain"] == "art_painting" and 0 < row["accuracy"] < 1


def test_an_analysis(root):
    found = told(root, "analyze", "adaptive", "small")
    assert [row["how"] for row in found["rows"]] == ["direct", "reasoning", "adaptive"]
    assert found["curve"][-1]["threshold"] is None, "JSON has no infinity"


def test_data_in_and_out(root, tmp_path):
    target = str(tmp_path / "out")
    assert told(root, "chains", "export", "--out", target, "--dataset", "mini") == {
        "location": target,
        "chains": 90,
    }
    back = told(root, "chains", "import", target, "--dataset", "mini", "--teacher", "back")
    assert back["verdicts"] == {"accepted": 90}
    asked = told(root, "annotate", "mini", "--dry-run")
    assert asked["to_ask"]["samples"] == 90 and len(asked["dollars_least_and_most"]) == 2
    folder = tmp_path / "images"
    for domain in ("a", "b"):
        (folder / domain / "dog").mkdir(parents=True)
        (folder / domain / "dog/1.png").touch()
    found = told(root, "ingest", str(folder), "--dataset", "custom", "--name", "own", "--dry-run")
    assert found["images"] == {"a": 1, "b": 1} and not found["read"]


def test_a_user_error_leaves_stdout_empty(root):
    result = rdmldg("collect", "none", "--json", "--storage", root)
    assert (
        result.exit_code == 2
        and result.stdout == ""
        and "runs/none: no run with results here" in result.stderr
    )
