import json
import shutil

import pyarrow as pa
import pytest

from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.storage import list_folders, write_json, write_table
from rdmldg_ray.sweeps.variants import ablation_configs, trial_configs
from tests.helpers import sweep_records as made
from tests.helpers.cli import error_of, rdmldg, rows_of


@pytest.fixture
def root(tmp_path):
    """Two runs with results, and a folder that has none."""
    for trial in (0, 1):
        records = [r for r in made.sweep_records() if r["args"]["trial_seed"] == trial]
        folder = tmp_path / f"runs/pacs-trial-{trial}"
        folder.mkdir(parents=True)
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "runs/other").mkdir()
    return tmp_path


def test_runs_are_collected_by_name_with_wildcards(root):
    result = rdmldg("collect", "pacs-*", "--storage", str(root))
    assert result.exit_code == 0, result.output
    assert "336 records of 2 runs" in result.output
    assert "PACS (in part, as DomainBed reports), model selection: training-domain valid" in result.output
    one = rdmldg("collect", str(root / "runs/pacs-trial-1/results.jsonl"), "--chosen")
    assert "168 records of 1 runs" in one.output
    assert "chosen checkpoints" in one.output


def test_a_run_without_results_is_an_error_that_names_it(root):
    assert "runs/other: no run with results here" in error_of("collect", "other", "--storage", str(root))
    assert "runs/gone*: no run with results here" in error_of("collect", "gone*", "--storage", str(root))


def test_folders_are_listed_by_name_alone(root):
    assert list_folders(str(root / "runs")) == ["other", "pacs-trial-0", "pacs-trial-1"]
    assert list_folders(str(root / "nothing")) == []


def test_trials_plan_a_run_each(tmp_path):
    result = rdmldg("run", "iconbed", "--trials", "0,1,2", "--dry-run", "--storage", str(tmp_path))
    assert result.exit_code == 0, result.output
    for trial in (0, 1, 2):
        assert f"plan of run 'iconbed-trial-{trial}'" in result.output


def test_an_ablation_plans_its_runs_and_prints_its_table_from_storage(tmp_path, store):
    from rdmldg_ray.config.load import load_config

    root = str(tmp_path)
    planned = rdmldg("ablate", "demo", "--dry-run", "--storage", root)
    assert planned.exit_code == 0, planned.output
    assert all(f"plan of run 'demo-{name}'" in planned.output for name in ("both", "labels", "chains"))

    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    config = load_config("demo")
    info = read_dataset_info(root, "iconbed")
    for trial in trial_configs(config, "0,1"):
        for number, variant in enumerate(ablation_configs(trial).values()):
            accuracy = {"target_in": 0.1 * number, "target_out": 0, "target_all": 0.05, "validation": 0.5}
            entry = {"seconds": 1.0, "accuracy": dict.fromkeys(variant.evaluation.pathways, accuracy)}
            entry |= {"kept": 1, "candidates": 2}
            stages = plan_stages(variant, info)
            write_json(f"{root}/runs/{variant.name}/state.json", {stage.name: entry for stage in stages})
            for stage in stages:
                if stage.kind == "evaluate":
                    location = RunStore(root, variant.name).predictions_uri(stage.held_out, stage.model)
                    write_table(location, two_answers(variant, right=[True, number == 0]))
    printed = rdmldg("ablate", "demo", "--trials", "0,1", "--storage", root)
    assert printed.exit_code == 0, printed.output
    assert "mean of 2 trials" in printed.output
    assert [row for row in rows_of(printed.output) if row[0] == "labels only"] == [
        ["labels only", "direct", "10.0", "10.0 +/- 0.0"],
        ["labels only", "direct", "5.0", "5.0 +/- 0.0"],
    ]
    # All of two images are right where one is: 50 points, and as many of error.
    assert [row[1:] for row in rows_of(printed.output) if len(row) == 6 and row[-1] == "2"] == [
        ["zero-shot", "direct", "+0.0 +/- 0.0", "1.000", "2"],
        ["zero-shot", "reasoning", "+0.0 +/- 0.0", "1.000", "2"],
        ["labels only", "direct", "+50.0 +/- 50.0", "0.317", "2"],
        ["chains only", "reasoning", "+50.0 +/- 50.0", "0.317", "2"],
        ["MTCT", "direct", "+0.0 +/- 0.0", "1.000", "2"],
        ["MTCT", "reasoning", "+0.0 +/- 0.0", "1.000", "2"],
        ["MTCT and SARR without filter, round 1", "direct", "+50.0 +/- 50.0", "0.317", "2"],
        ["MTCT and SARR without filter, round 1", "reasoning", "+50.0 +/- 50.0", "0.317", "2"],
    ]


def two_answers(config, right):
    """Predictions of two images of the held-out domain by each pathway."""
    return pa.Table.from_pylist(
        [
            {"id": str(image), "split": "in", "held_out": True, "pathway": pathway, "correct": correct}
            for pathway in config.evaluation.pathways
            for image, correct in enumerate(right)
        ],
        schema=PREDICTION_SCHEMA,
    )


def test_a_sweeps_plan_tells_what_its_trials_share(tmp_path):
    result = rdmldg("sweep", "demo", "--space", "filters", "--dry-run", "--storage", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "12 trials (grid) of 6 stages each" in result.output
    assert rows_of(result.output)[1:] == [
        ["evaluate", "36", "14"],
        ["mtct", "12", "1"],
        ["generate", "12", "1"],
        ["train", "12", "12"],
    ]
    assert "must be the same in all trials" in error_of(
        "sweep", "demo", "--space", _space(tmp_path, "data.trial_seed"), "--storage", str(tmp_path)
    )


def _space(folder, path):
    (folder / "space.yaml").write_text(f"settings: {{{path}: [0, 1]}}\n")
    return str(folder / "space.yaml")
