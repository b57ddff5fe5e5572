"""The errors of a new user: each ends in one short message that names the remedy."""

import shlex
import shutil

import pytest
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.models.folder import TINY_BASE

_LONGEST = 5

# Command, with {root} for an empty storage and {files} for a folder of broken things; words of the remedy.
ERRORS = {
    "misspelt recipe": ("run iconbet", "did you mean 'iconbed'"),
    "recipe of another folder": ("run {files}/none.yaml", "or give a path to a .yaml file"),
    "recipe that is no YAML": ("run {files}/broken.yaml", "not valid YAML"),
    "recipe that is a list": ("run {files}/list.yaml", "a recipe is a mapping of settings"),
    "misspelt setting": ("demo mtct.epoch=3", "did you mean 'epochs'"),
    "misspelt section": ("demo mtc.epochs=3", "did you mean 'mtct'"),
    "setting without a value": ("demo mtct.epochs", "key.path=value"),
    "word for a number": ("demo mtct.epochs=many", "mtct.epochs"),
    "negative learning rate": ("demo mtct.learning_rate=-1", "greater than 0"),
    "both pathways off": (
        "demo mtct.weights.direct=0 mtct.weights.reasoning=0",
        "nothing to train on",
    ),
    "rounds without the reasoning pathway": ("demo mtct.weights.reasoning=0", "set sarr.rounds=0"),
    "GPUs for training alone": ("demo workers.gpus_per_worker=1", "must both be 0 or both be positive"),
    "misspelt domain": ("demo data.held_out=flatt", "it has: flat, gradient, paint, sketch"),
    "data set that was not ingested": ("run pacs-internvl3-8b", "ingest the data set again"),
    "chains that no one wrote": ("demo data.chains=gpt-4o", "choose another teacher (data.chains)"),
    "model folder that is not there": ("demo model.path={root}/none", "give 'tiny', a folder or a hub id"),
    "model folder without weights": ("demo model.path={files}/model", "model.save_pretrained"),
    "storage of a variable that is not set": ("demo --storage ''", "an empty path was given"),
    "storage of nothing but a space": ("demo --storage ' '", "an empty path was given"),
    "data set that is a path": ("run demo data.dataset=../x", "give another name"),
    "teacher that is a path": ("demo data.chains=../rules", "give another name"),
    "chains of a teacher of no name": (
        "chains import {files} --dataset iconbed --teacher '' --replace",
        "the name is empty; give another name",
    ),
    "answers with a path for a name": (
        "annotate iconbed --name ../../evil --dry-run",
        "'../../evil' is no name for chains; give one of letters, digits and . _ -",
    ),
    "chains of a teacher that is a path": (
        "chains export --out {files}/out --dataset iconbed --teacher ..",
        "give another name",
    ),
    "ingest under the name of the embedded data set": (
        "ingest {files} --dataset custom --name iconbed-vqa",
        "ingest your own under another name",
    ),
    "storage of an unknown kind": ("demo --storage gs://bucket/x", "use a local path or s3://bucket/prefix"),
    "storage that is a file": ("demo --storage {files}/list.yaml", "choose another storage path"),
    "report of a run that is not there": ("report none", "correct the run's name, or --storage"),
    "status of a run that is not there": ("status none", "correct the run's name, or --storage"),
    "analysis of a run that is not there": ("analyze tokens none", "correct the run's name, or --storage"),
    "export of a run that is not there": (
        "export none --out {root}/out",
        "correct the run's name, or --storage",
    ),
    "chains shown of a run that is not there": ("show none", "correct the run's name, or --storage"),
    "tables of runs that are not there": ("collect none", "no run with results here"),
    "folder to ingest that is not there": ("ingest {root}/none --dataset pacs", "correct the path"),
    "data set that is not known": ("ingest {files} --dataset paks", "did you mean pacs?"),
    "teacher without its model": ("annotate iconbed --teacher vllm", "--model"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "broken.yaml").write_text("a: [1,\nb")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "model").mkdir()
    shutil.copy(TINY_BASE / "config.json", folder / "model")
    return folder


@pytest.mark.parametrize("name", ERRORS)
def test_a_user_error_ends_in_a_short_message_with_its_remedy(name, files, tmp_path):
    command, remedy = ERRORS[name]
    arguments = shlex.split(command.format(root=tmp_path, files=files))
    if "--storage" not in arguments:
        arguments += ["--storage", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= _LONGEST
    assert remedy in result.stderr
