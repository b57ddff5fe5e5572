import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KINDS = {"cpu": "requirements-cpu.txt", "gpu": "cluster/requirements-gpu.txt"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines):
    """Versions by package name; local builds such as ``+cpu`` count as the version they are built from."""
    found = {}
    for line in lines:
        line = line.partition("#")[0].strip()
        if line:
            name, version = line.split("==")
            found[normal(name.partition("[")[0])] = version.partition("+")[0]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_images_have_the_versions_of_the_project(kind):
    asked = pins([*project()["dependencies"], *project()["optional-dependencies"][kind]])
    installed = pins((ROOT / KINDS[kind]).read_text().splitlines())
    assert {name: installed.get(name) for name in asked} == asked


@pytest.mark.parametrize("kind", KINDS)
def test_images_install_nothing_but_pins_and_run_without_root(kind):
    text = (ROOT / f"cluster/Dockerfile.{kind}").read_text()
    name = Path(KINDS[kind]).name
    assert f"COPY {KINDS[kind]} ./" in text and f"--no-deps -r {name}" in text
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 2 and all("--no-deps" in arguments for arguments in installs)
    [base] = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert re.search(r":[\w.]*\d", base), "the base image has a version"
    assert [line for line in text.splitlines() if line.startswith("USER")] == ["USER 1000"]
    assert "RAY_AUTH_MODE=token" in text


def test_the_cuda_version_of_the_image_is_torchs():
    runtime = pins((ROOT / KINDS["gpu"]).read_text().splitlines())["nvidia-cuda-runtime"]
    [base] = re.findall(r"^FROM nvidia/cuda:([\d.]+)-devel", text := gpu_file(), re.MULTILINE)
    assert base.split(".")[:2] == runtime.split(".")[:2], text


def gpu_file():
    return (ROOT / "cluster/Dockerfile.gpu").read_text()


def test_only_what_the_image_needs_is_sent_to_docker():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*" and not any(".venv" in line or ".git" in line for line in lines)
    for copied in ("pyproject.toml", "README.md", "rdmldg_ray", *KINDS.values()):
        assert f"!{copied}" in lines and (ROOT / copied).exists()


def test_manifests_and_images_speak_of_one_version():
    version = project()["version"]
    ray = pins(project()["dependencies"])["ray"]
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == ray
    for file in ("aws.yaml", "Dockerfile.cpu", "Dockerfile.gpu"):
        tags = re.findall(r"rdmldg:([\d.]+)-[cg]pu", (ROOT / "cluster" / file).read_text())
        assert tags and set(tags) == {version}
