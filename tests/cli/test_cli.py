import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest
import yaml

from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import dump_config, load_config
from rdmldg_ray.datasets.builtin.iconbed import write_iconbed
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.storage import write_bytes, write_json
from tests.helpers.cli import error_of, rdmldg

HEAVY = ("torch", "ray", "transformers", "vllm", "deepspeed")

# Runs the commands given as JSON in one fresh interpreter, then tells which heavy modules it has.
SCRIPT = f"""
import json, sys
from typer.testing import CliRunner
from rdmldg_ray.cli import app
results = [CliRunner().invoke(app, command) for command in json.loads(sys.argv[1])]
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"results": [[r.exit_code, r.output] for r in results], "heavy": heavy}}))
"""


def fresh(*commands):
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


def complete_run(root, entry):
    """Enter every stage of the demo in the state of a run below ``root``."""
    config = load_config("demo")
    stages = plan_stages(config, read_dataset_info(str(root), "iconbed"))
    write_json(f"{root}/runs/demo/state.json", {stage.name: entry(stage) for stage in stages})


def scored(stage):
    accuracy = {"target_in": 0.5, "target_out": 0.5, "target_all": 0.25, "validation": 0.75}
    by_kind = {
        "evaluate": {"accuracy": {"direct": accuracy, "reasoning": accuracy}},
        "generate": {"kept": 1, "candidates": 2},
    }
    return {"seconds": 1.0, **by_kind.get(stage.kind, {"samples": 3})}


def test_planning_helping_and_a_finished_run_import_nothing_heavy(tmp_path, store):
    shutil.copytree(f"{store}/datasets", tmp_path / "done/datasets")
    complete_run(tmp_path / "done", scored)
    new = str(tmp_path / "new")
    outcome = fresh(
        ["--help"],
        ["demo", "--dry-run", "--storage", new],
        ["run", "iconbed", "--dry-run", "--storage", new, "sarr.rounds=2"],
        ["demo", "--storage", str(tmp_path / "done")],
    )
    assert outcome["heavy"] == []
    (_, help), (_, demo), (_, iconbed), (_, done) = outcome["results"]
    assert [code for code, _ in outcome["results"]] == [0, 0, 0, 0]
    assert "dom" in help and "evaluate" in help
    assert "sketch/sarr-1 " in demo and "<= 690" in demo
    assert "sketch/sarr-2/candidates" in iconbed
    assert not (tmp_path / "new").exists(), "a dry run writes nothing"
    assert "run 'demo' is complete; nothing to do" in done
    assert "sketch held out: accuracy, %" in done and "75.0" in done


def test_a_dry_run_prints_a_config_that_can_be_loaded(tmp_path):
    # Longer than a terminal is wide, and with a character that YAML would take for a comment.
    storage = tmp_path / ("long" * 40) / "a #b"
    result = rdmldg("demo", "--dry-run", "--storage", str(storage), "mtct.epochs=9")
    assert result.exit_code == 0
    printed, _, plan = result.output.partition("\n\n")
    config = yaml.safe_load(printed)
    assert (config["storage"], config["mtct"]["epochs"], config["name"]) == (str(storage), 9, "demo")
    (tmp_path / "again.yaml").write_text(printed)
    assert load_config(str(tmp_path / "again.yaml")).mtct.epochs == 9
    assert "plan of run" in plan


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for path in ("model", "./model"):
        result = rdmldg("demo", "--dry-run", "--storage", "here", f"model.path={path}")
        config = yaml.safe_load(result.output.partition("\n\n")[0])
        assert config["storage"] == str(tmp_path / "here")
        assert config["model"]["path"] == str(tmp_path / "model")


def test_a_dry_run_tells_which_stages_are_complete(tmp_path, store):
    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    write_json(f"{tmp_path}/runs/demo/state.json", {"sketch/mtct": {"seconds": 1}})
    lines = rdmldg("demo", "--dry-run", "--storage", str(tmp_path)).output.splitlines()
    assert [line.split()[1] for line in lines if "complete" in line] == ["sketch/mtct"]


def test_a_misspelt_key_names_the_nearest(tmp_path):
    message = error_of("demo", "mtct.epoch=3", "--storage", str(tmp_path))
    assert message == "recipe 'demo' is not valid:\n  mtct.epoch: unknown key; did you mean 'epochs'?"
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_names_the_nearest():
    assert error_of("run", "iconbet").startswith("no recipe 'iconbet'; did you mean 'iconbed'?")


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_an_unknown_held_out_domain_lists_those_there_are(store, how):
    message = error_of("demo", "data.held_out=photo", "--storage", store, *how)
    assert message == ("data.held_out: iconbed has no domain 'photo'; it has: flat, gradient, paint, sketch")


def test_a_model_folder_without_a_tokenizer_names_the_remedy(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "processor_config.json"):
        shutil.copy(TINY_BASE / name, model)
    (model / "model.safetensors").touch()
    message = error_of("demo", f"model.path={model}", "--storage", str(tmp_path / "store"))
    assert message.startswith(f"{model}: no tokenizer (tokenizer.json, ")
    assert message.endswith("save it there with processor.save_pretrained")


def test_a_storage_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").touch()
    message = error_of("demo", "--storage", str(tmp_path / "file/below"))
    assert message.startswith(f"{tmp_path}/file/below/.write-test-")
    assert "cannot be written" in message and "choose another storage path" in message


def test_missing_chains_are_named_with_their_setting(store):
    message = error_of("demo", "data.chains=gpt-4o", "--storage", store)
    there = f"{store}/datasets/iconbed/chains/gpt-4o"
    assert message.startswith(
        f"{there}: no chains for flat, gradient, paint; choose another teacher (data.chains)"
    )


def test_a_chain_without_a_conclusion_ends_a_run_before_it_begins(tmp_path):
    root = str(tmp_path)
    write_iconbed(root)
    tables = {domain: read_chains(root, "iconbed", "rules", [domain]) for domain in ICONBED.environments}
    chains = tables["paint"]
    first = chains["id"][0].as_py()
    texts = chains["text"].to_pylist()
    texts[0] = texts[0].split("<CONCLUSION>")[0]
    place = chains.schema.get_field_index("text")
    tables["paint"] = chains.set_column(place, "text", pa.array(texts))
    write_chains(root, "iconbed", "rules", tables)
    message = error_of("demo", "--storage", root)
    assert f"row {first}: the chain has no <CONCLUSION>" in message
    assert not (tmp_path / "runs").exists()


def test_a_data_set_that_is_not_there_names_the_remedy(tmp_path):
    for how in (["--dry-run"], []):
        message = error_of("run", "demo", "data.dataset=pacs", "--storage", str(tmp_path), *how)
        assert f"{tmp_path}/datasets/pacs/dataset.json" in message
        assert message.endswith("ingest the data set again, or correct the storage path")


def test_another_setting_for_an_existing_run_is_refused(tmp_path, store):
    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    complete_run(tmp_path, scored)
    assert rdmldg("demo", "--storage", str(tmp_path)).exit_code == 0
    message = error_of("demo", "mtct.epochs=9", "--storage", str(tmp_path))
    assert "mtct.epochs: was 4, now 9" in message and f"delete {tmp_path}/runs/demo" in message


def test_an_adapter_that_is_not_there_is_named(tmp_path, store):
    message = error_of("evaluate", "demo", "--adapter", str(tmp_path), "--storage", store)
    assert message == f"{tmp_path}: no parity.parquet here; give the folder that a training left"


def test_debug_shows_the_error_itself():
    result = rdmldg("demo", "mtct.epoch=3", "--debug")
    assert result.exit_code == 1 and type(result.exception).__name__ == "ConfigError"


def test_the_teachers_chains_are_shown(store):
    result = rdmldg("show", "teacher", "--limit", "2", "--storage", store)
    assert result.exit_code == 0
    assert result.output.count("<CONCLUSION>") == 2
    assert "2 of 1148 chains" in result.output
    assert "0 of 0 chains" in rdmldg("show", "teacher", "--verdict", "rejected", "--storage", store).output


def test_a_run_without_candidates_says_what_was_looked_for(tmp_path):
    root = str(tmp_path)
    write_bytes(f"{root}/runs/new/config.yaml", dump_config(load_config("demo", ["name=new"])).encode())
    message = error_of("show", "new", "--round", "2", "--held-out", "flat", "--storage", root)
    assert message.startswith(f"{root}/runs/new: no candidates of round 2 for flat; correct --round")


def test_the_embedded_questions_can_be_planned_and_shown(tmp_path):
    result = rdmldg("run", "iconbed-vqa", "--storage", str(tmp_path / "new"), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "flat/sarr-1" in result.output and not (tmp_path / "new").exists()
    result = rdmldg("show", "teacher", "--dataset", "iconbed-vqa", "--storage", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "5 of 1152 chains" in result.output
