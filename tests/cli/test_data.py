"""The commands that bring data in and out; what they do is tested in its own rooms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdmldg_ray.domainbed.catalogue import DATASETS
from rdmldg_ray.storage import read_table
from tests.helpers.cli import error_of, rdmldg
from tests.helpers.openai_endpoint import Endpoint, completion, serving
from tests.helpers.questions_file import write_questions
from tools import mini


@pytest.fixture
def pacs(tmp_path):
    """The tree of PACS, with empty files for images."""
    for environment in DATASETS["pacs"].environments:
        for label in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
            folder = tmp_path / "PACS/kfold" / environment / label
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"pic_{number:03d}.jpg").touch()
    (tmp_path / "PACS/kfold/photo/person/pic_002.jpg").unlink()
    return tmp_path / "PACS"


def test_a_dry_ingest_shows_counts_beside_the_literatures_and_writes_nothing(pacs, tmp_path):
    result = rdmldg("ingest", str(pacs), "--dataset", "pacs", "--storage", str(tmp_path / "new"), "--dry-run")
    assert result.exit_code == 0, result.output
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in result.output.splitlines()]
    assert ["photo", "20", "0", "1670"] in cells
    assert ["all", "83", "0", "9991"] in cells
    assert "7 classes" in result.output and "not read yet" in result.output
    assert not (tmp_path / "new").exists()


def test_an_ingest_names_what_is_wrong_with_the_source(pacs, tmp_path):
    new = str(tmp_path / "new")
    message = error_of("ingest", str(pacs), "--dataset", "vlcs", "--storage", new)
    assert message.startswith(f"{pacs}: not VLCS: expected the folders Caltech101, LabelMe, SUN09, VOC2007;")
    assert "unknown data set 'pacz'; did you mean pacs?" in error_of("ingest", str(pacs), "--dataset", "pacz")
    (pacs / "kfold/photo/dog/notes.txt").touch()
    message = error_of("ingest", str(pacs), "--dataset", "pacs", "--storage", new, "--max-rejects", "0.01")
    assert message.startswith(f"{pacs}: 1 of 84 files are rejected, more than the share of 0.01")
    missing = str(tmp_path / "missing")
    assert (
        error_of("ingest", missing, "--dataset", "pacs")
        == f"{missing}: there are no files here; correct the path"
    )


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_a_name_that_is_taken_is_told_before_ray_starts(pacs, tmp_path, how):
    described = tmp_path / "datasets/mine/dataset.json"
    described.parent.mkdir(parents=True)
    described.write_text('{"name": "mine", "content": "other"}')
    command = ("ingest", str(pacs), "--dataset", "custom", "--name", "mine", "--storage", str(tmp_path), *how)
    assert "there is a data set 'mine' with other content" in error_of(*command)
    assert rdmldg(*command, "--dry-run", "--replace").exit_code == 0
    assert described.read_text() == '{"name": "mine", "content": "other"}'


def test_planning_an_ingest_imports_nothing_heavy(pacs, tmp_path):
    command = ["ingest", str(pacs), "--dataset", "pacs", "--storage", str(tmp_path), "--dry-run"]
    script = (
        "import sys; from typer.testing import CliRunner; from rdmldg_ray.cli import app\n"
        f"assert CliRunner().invoke(app, {command!r}).exit_code == 0\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", ["sharegpt", "huggingface"])
def test_chains_go_out_and_in(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    mini.write_mini("store")
    common = ("--dataset", "mini", "--storage", "store")
    result = rdmldg("chains", "export", "--out", "out", *common, "--form", form)
    assert result.exit_code == 0, result.output
    assert f"90 chains of rules in {tmp_path}/out" in result.output
    result = rdmldg("chains", "import", "out", *common, "--teacher", "back")
    assert result.exit_code == 0, result.output
    assert f"90 chains in {tmp_path}/store/datasets/mini/chains/back: 90 accepted" in result.output
    chains = Path("store/datasets/mini/chains").absolute()
    back, rules = (read_table(str(chains / teacher)) for teacher in ("back", "rules"))
    assert back.drop_columns(["image_sha256"]).equals(rules.drop_columns(["image_sha256"]))


def test_embedded_chains_go_out_where_no_storage_is_yet(tmp_path):
    command = ("chains", "export", "--out", str(tmp_path / "out"), "--dataset", "iconbed")
    result = rdmldg(*command, "--storage", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert "1148 chains of rules" in result.output


def test_a_bad_chain_is_told_with_its_line(tmp_path):
    mini.write_mini(str(tmp_path))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    message = error_of(
        *("chains", "import", str(tmp_path / "bad.jsonl"), "--dataset", "mini", "--teacher", "x"),
        *("--storage", str(tmp_path)),
    )
    assert f"{tmp_path}/bad.jsonl, line 1: 'messages' (or 'conversations') is not one question" in message


def test_a_dry_annotation_estimates_tokens_and_cost_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    new = tmp_path / "new"
    result = rdmldg("annotate", "iconbed", "--storage", str(new), "--dry-run", "--max-samples", "100")
    assert result.exit_code == 0, result.output
    assert "to ask: 100 samples, 1 to 3 answers each; with one each about" in result.output
    assert "cost: about $" in result.output
    assert not new.exists()
    mini.write_mini(str(tmp_path))
    options = ("--storage", str(tmp_path), "--dry-run")
    result = rdmldg("annotate", "mini", "--teacher", "org/llama", *options)
    assert "90 samples of mini, 0 done" in result.output
    assert "the price of 'org/llama' is not known; give it with --prices IN OUT" in result.output
    result = rdmldg("annotate", "mini", "--teacher", "org/llama", *options, "--prices", "0", "100")
    assert "cost: about $3.15 with one answer each, $9.45 with 3" in result.output


def test_an_annotation_names_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mini.write_mini(str(tmp_path))
    options = ("mini", "--storage", str(tmp_path))
    assert "no API key: set OPENAI_API_KEY" in error_of("annotate", *options)
    assert "--teacher vllm needs --model" in error_of("annotate", *options, "--teacher", "vllm")
    assert "go with --teacher vllm" in error_of("annotate", *options, "--model", "tiny")
    missing = str(tmp_path / "missing")
    assert "no such model folder" in error_of("annotate", *options, "--teacher", "vllm", "--model", missing)
    assert "ingest the data set again" in error_of("annotate", "pacs", "--storage", str(tmp_path))


def test_a_dry_ingest_of_rows_counts_questions_and_answers(tmp_path):
    file, _ = write_questions(tmp_path, each=2)
    new = ("--storage", str(tmp_path / "new"), "--dry-run")
    result = rdmldg("ingest", str(file), "--dataset", "custom", "--name", "asked", *new)
    assert result.exit_code == 0, result.output
    assert "4 questions, " in result.output
    message = error_of("ingest", str(file), "--dataset", "pacs", *new)
    assert message.endswith("pacs has classes, not questions; ingest rows as custom")
    assert not (tmp_path / "new").exists()


def test_an_annotation_tells_scripts_what_was_rejected_and_what_got_no_answer(tmp_path, monkeypatch):
    mini.write_mini(str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
    samples = read_table(f"{tmp_path}/datasets/mini/samples").to_pylist()
    rows = [{"id": row["id"], "image": row["image"]} for row in samples]
    endpoint = Endpoint(rows, lambda row, before: completion("no chain"))
    with serving(endpoint):
        command = ("annotate", "mini", "--teacher", "wordy", "--base-url", endpoint.url, "--max-samples", "2")
        result = rdmldg(*command, "--candidates", "1", "--storage", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["accepted"] == 0 and sum(document["rejected"].values()) == 2
    assert document["location"] == f"{tmp_path}/datasets/mini/chains/wordy"
