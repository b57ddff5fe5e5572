import runpy
import sys

import pytest
import typer
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.cli.base import report_errors
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.runtime.submission import connect, job_stem, next_job_id, stage_files
from tests.helpers.repository import ROOT

JOBS = ROOT / "jobs"
MIB = 2**20


def submit(*arguments):
    command = ["submit", "--address", "http://127.0.0.1:9", *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def test_the_package_and_named_yaml_files_are_sent_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".git", ".venv", "rdmldg-store"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "folder").mkdir()
    arguments = ["mine.yaml", "--space", "filters", "sarr.rounds=1", "not-there.yaml"]
    assert stage_files(tmp_path / "folder", arguments) == arguments
    sent = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert sent == ["mine.yaml", "rdmldg_ray"]
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert (tmp_path / "folder/rdmldg_ray/models/tiny_base/model.safetensors") in files
    assert not [path for path in files if "__pycache__" in path.parts]
    assert sum(path.stat().st_size for path in files) < 50 * MIB, "Ray refuses more than 100 MiB"


def test_a_recipe_elsewhere_is_named_as_it_is_sent(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.yaml").write_text("name: mine\n")
    (tmp_path / "sent").mkdir()
    assert stage_files(tmp_path / "sent", [f"{tmp_path}/a/mine.yaml", "x=1"]) == ["mine.yaml", "x=1"]


def test_a_file_in_any_form_of_option_is_sent(tmp_path):
    (tmp_path / "space.yaml").write_text("{}\n")
    (tmp_path / "sent").mkdir()
    arguments = [f"--space={tmp_path}/space.yaml", "--trials=0", "x=1", f"x={tmp_path}/space.yaml"]
    staged = stage_files(tmp_path / "sent", arguments)
    assert staged == ["--space=space.yaml", *arguments[1:]]
    assert (tmp_path / "sent/space.yaml").is_file()


@pytest.mark.parametrize(
    ("ended", "job_id"),
    [
        ({}, "run-demo"),
        ({"run-demo": False}, "run-demo"),
        ({"run-demo": True}, "run-demo-2"),
        ({"run-demo": True, "run-demo-2": False}, "run-demo-2"),
        ({"run-demo": True, "run-demo-2": True}, "run-demo-3"),
        ({"run-demo": True, "run-demo-3": False, None: False}, "run-demo-2"),
        ({"run-demo2": False, "raysubmit_x": False}, "run-demo"),
    ],
)
def test_a_command_has_one_job_that_is_alive_and_numbered_ones_before(ended, job_id):
    assert next_job_id("run-demo", ended) == job_id


def test_the_same_command_with_the_same_files_has_the_same_id(tmp_path):
    def stem(job, name, entrypoint, yaml="name: mine\n"):
        (tmp_path / "mine.yaml").write_text(yaml)
        return job_stem(tmp_path, job, name, entrypoint)

    first = stem("run", "mine-trial-0-1", "python mine.yaml --trials 0,1")
    assert first == stem("run", "mine-trial-0-1", "python mine.yaml --trials 0,1")
    assert first.rpartition("-")[0] == "run-mine-trial-0-1" and len(first.rpartition("-")[2]) == 8
    assert stem("ingest", "", "x").rpartition("-")[0] == "ingest"
    others = {
        stem("run", "mine-trial-0-1", "python mine.yaml --trials 0,1", yaml="name: mine\nseed: 1\n"),
        stem("run", "mine-trial-0-1", "python mine.yaml --trials 0,1 seed=1"),
        stem("run", "mine-trial-0", "python mine.yaml --trials 0"),
    }
    assert first not in others and len(others) == 3


@pytest.mark.parametrize("address", ["127.0.0.2:7712", "auto", "ray://127.0.0.1:10001", "", "http://"])
def test_an_address_that_is_no_url_is_refused_at_once(address):
    with pytest.raises(ValueError, match="give the dashboard's, as http://"):
        connect(address)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, "no job server at http://127.0.0.1:9"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "(or RAY_ADDRESS): '10.0.0.1:6379' is not a URL"),
        (
            {"RAY_ADDRESS": "auto", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"},
            "no job server at http://127.0.0.1:9",
        ),
        ({}, "Missing option '--address'"),
    ],
)
def test_the_address_may_come_from_rays_own_variables(environment, message, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for command in (["submit", "iconbed", "--storage", "s3://bucket/x"], ["attach", "job"]):
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200", **environment})
        assert result.exit_code == 2 and message in result.output


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b", "sent"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "sent/mine.yaml").unlink()
    with pytest.raises(ValueError, match=r"b/mine\.yaml: another file of the same name is sent"):
        stage_files(tmp_path / "sent", [f"{tmp_path}/a/mine.yaml", f"{tmp_path}/b/mine.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iconbed"], "'rdmldg-store' would be a folder of the job's own"),
        (["iconbed", "--storage", "s3://"], "s3://: no valid bucket name"),
        (["iconbed", "--storage", "gs://bucket/x"], "unknown scheme 'gs://'"),
        (["iconbed", "storage=here"], "'here' would be a folder of the job's own"),
        (["iconbed", "--storage", "here"], "'here' would be a folder of the job's own"),
        (["iconbet", "--storage", "s3://bucket/x"], "did you mean 'iconbed'?"),
        (["iconbed", "--storage", "s3://bucket/x", "mtct.epoch=3"], "did you mean 'epochs'?"),
        (["iconbed", "--storage", "s3://bucket/x", "--trails", "0"], "No such option: --trails"),
        (["--job", "sweep", "iconbed", "--storage", "s3://bucket/x"], "Missing option '--space'"),
        (["--job", "ingest", "s3://bucket/data", "--dataset", "pacs"], "would be a folder of the job's own"),
        (
            ["--job", "ingest", "data", "--dataset", "pacs", "--storage", "s3://bucket/x"],
            "SOURCE: 'data' would be a folder of the job's own",
        ),
        (
            ["iconbed", "--storage", "s3://bucket/x", "model.path=./mine"],
            "model.path: './mine' would be a folder of the job's own",
        ),
        (
            ["--job", "evaluate", "iconbed", "--storage", "s3://bucket/x", "--adapter", "runs/a/adapter"],
            "--adapter: 'runs/a/adapter' would be a folder of the job's own",
        ),
        (
            ["--job", "annotate", "pacs", "--storage", "s3://bucket/x", "--teacher=vllm", "--model=./mine"],
            "--model: './mine' would be a folder of the job's own",
        ),
        (
            ["iconbed", "--storage", "s3://bucket/x", "--dry-run", "--calibration", "rates.json"],
            "--calibration: 'rates.json' would be a folder of the job's own",
        ),
    ],
)
def test_wrong_usage_is_found_before_anything_is_sent(arguments, message):
    result = submit(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_cluster_that_does_not_answer_is_named_with_what_to_look_at():
    result = submit("iconbed", "--storage", "s3://bucket/x")
    assert result.exit_code == 2
    assert "no job server at http://127.0.0.1:9" in result.stderr and "tunnel" in result.stderr


@pytest.mark.parametrize("job", ["ingest", "annotate", "run", "evaluate", "sweep"])
def test_each_script_is_its_command(job, monkeypatch, capsys):
    for arguments, code in ((["--help"], 0), ([], 2)):
        monkeypatch.setattr(sys, "argv", [f"{job}.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        assert ended.value.code == code
    assert f"{job}.py {job}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("no such domain"), 2), (RunFailedError("no resources"), 1)]
)
def test_what_could_not_be_done_ends_otherwise_than_what_was_asked_wrongly(error, code, capsys):
    with pytest.raises(typer.Exit) as ended, report_errors(debug=False):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"error: {error}\n"
