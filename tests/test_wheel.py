"""What is shipped: the wheel has all its files, and works in an environment that never saw this folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import rdmldg_ray

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, since building leaves files behind."""
    pytest.importorskip("setuptools", reason="no setuptools; pip install 'setuptools>=77'")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "rdmldg_ray", source / "rdmldg_ray", ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    pip(sys.executable, "wheel", "--quiet", *offline, "--wheel-dir", str(out), str(source))
    [built] = out.iterdir()
    return built


def pip(python, *arguments):
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *arguments], check=True)


def test_the_wheel_holds_types_recipes_the_data_set_and_the_tiny_base(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "rdmldg_ray"
    there = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"rdmldg_ray/{path.relative_to(package)}" for path in there} <= held
    for name in (
        "py.typed",
        "config/recipes/demo.yaml",
        "report/page.html.jinja",
        "models/tiny_base/model.safetensors",
    ):
        assert f"rdmldg_ray/{name}" in held
    assert any(name.startswith("rdmldg_ray/datasets/builtin/iconbed_data/LICENSES/") for name in held)
    assert any(name.endswith("/licenses/LICENSE") for name in held)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment with the wheel, and with the packages that run this test."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin/python"
    pip(str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "rest.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return home / "bin"


def rdmldg(installed, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "rdmldg"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_it_runs_from_an_empty_folder(installed, tmp_path):
    where = [str(installed / "python"), "-I", "-c", "import rdmldg_ray; print(rdmldg_ray.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed.parent))
    assert rdmldg(installed, tmp_path, "--version").stdout == f"rdmldg_ray {rdmldg_ray.__version__}\n"
    examined = json.loads(rdmldg(installed, tmp_path, "doctor", "--json").stdout)
    states = {finding["check"]: finding["status"] for finding in examined}
    assert {states[name] for name in ("python", "storage", "data set", "model")} == {"ok"}
    planned = rdmldg(installed, tmp_path, "run", "demo", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    [run] = json.loads(planned.stdout)["runs"]
    assert run["location"] == f"{tmp_path}/rdmldg-store/runs/demo" and len(run["stages"]) == 6
    assert list(tmp_path.iterdir()) == []
