"""The checks and branches of `make setup`, with commands on PATH that install nothing."""

import os
import shutil
import subprocess

import pytest

from tests.helpers.repository import ROOT

PINNED = (ROOT / "requirements-cpu.txt").read_text().split()
[TORCH] = [pin for pin in PINNED if pin.startswith("torch==")]
REAL = ("awk", "cat", "chmod", "cmp", "cp", "cut", "dirname", "du", "grep", "mkdir", "rm", "sh")
FAKE = {
    "uname": "echo Linux x86_64",
    "df": "echo Filesystem; echo /dev/vda 9000000 0 9000000 0% /",
    "c++": "",
    "python3": "exit 1",
    # Fits, and makes an environment with the pip that a test wrote beside the commands.
    "python3.12": """
        case "$*" in
        --version) echo Python 3.12.4 ;;
        -m*) mkdir -p .venv/bin; cp "${0%/*}/../pip" .venv/bin/pip ;;
        esac""",
}
INSTALLER = 'echo "${0##*/} $*" >>said; '
WITHOUT_CPU_BUILD = INSTALLER + f'case "$*" in *extra-index-url*) ;; *{TORCH}) exit 1 ;; esac'


class Machine:
    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in REAL:
            (self.bin / name).symlink_to(shutil.which(name))
        for name, text in FAKE.items():
            self.has(self.bin / name, text)
        self.has(folder / "pip", INSTALLER)
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools/setup.sh", folder / "tools")
        shutil.copy(ROOT / "requirements-cpu.txt", folder)

    def has(self, path, text):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def setup(self, **variables):
        environment = {"PATH": str(self.bin), "TMPDIR": str(self.folder), **variables}
        command = [self.folder / "tools/setup.sh"]
        return subprocess.run(command, cwd=os.sep, env=environment, capture_output=True, text=True)

    def installs(self):
        """What the installers were asked for, since the last call."""
        said = self.folder / "said"
        lines = said.read_text().splitlines() if said.exists() else []
        said.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


PINS = "install --no-deps -r requirements-cpu.txt"
PROJECT = "install --no-deps --no-build-isolation --editable ."


def test_pins_are_installed_once_with_the_python_that_fits(machine):
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "Python 3.12.4" in done.stdout
    assert machine.installs() == [f"pip install --no-deps {TORCH}", f"pip {PINS}", f"pip {PROJECT}"]
    again = machine.setup()
    assert (again.returncode, again.stdout, machine.installs()) == (0, "", [])


def test_other_pins_make_another_environment(machine):
    machine.setup()
    (machine.folder / ".venv/old").touch()
    with (machine.folder / "requirements-cpu.txt").open("a") as pins:
        pins.write("more==1\n")
    assert machine.setup().returncode == 0
    assert not (machine.folder / ".venv/old").exists()


def test_an_interrupted_setup_is_not_a_finished_one(machine):
    machine.has(machine.folder / "pip", INSTALLER + 'case "$*" in *editable*) exit 1 ;; esac')
    assert machine.setup().returncode != 0
    machine.has(machine.folder / "pip", INSTALLER)
    machine.installs()
    assert machine.setup().returncode == 0
    assert len(machine.installs()) == 3


@pytest.mark.parametrize("given", [{}, {"TORCH_INDEX": "file:///wheels"}])
def test_an_index_is_added_for_torch_alone_where_pip_knows_no_cpu_build(machine, given):
    machine.has(machine.folder / "pip", WITHOUT_CPU_BUILD)
    done = machine.setup(**given)
    assert done.returncode == 0, done.stderr
    index = given.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
    assert f"pip finds no {TORCH}: adding {index}\n" in done.stdout
    assert machine.installs() == [
        f"pip install --no-deps {TORCH}",
        f"pip install --no-deps --extra-index-url {index} {TORCH}",
        f"pip {PINS}",
        f"pip {PROJECT}",
    ]


def test_uv_is_used_where_it_is_installed(machine):
    machine.has(machine.bin / "uv", INSTALLER)
    assert machine.setup().returncode == 0
    into = "uv pip install --compile-bytecode --python .venv/bin/python"
    assert [line.startswith(into) for line in machine.installs()] == [True, True, True]


def test_pip_goes_on_where_uv_fails(machine):
    machine.has(machine.bin / "uv", INSTALLER + "exit 2")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "going on with pip" in done.stdout
    assert [line.split()[0] for line in machine.installs()] == ["uv", "uv", "pip", "pip", "pip"]


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("uname", "echo Linux aarch64", "Linux on x86-64 (this is Linux aarch64)"),
        ("uname", "echo Darwin arm64", "Linux on x86-64 (this is Darwin arm64)"),
        ("python3.12", "exit 1", "Python 3.11 or 3.12"),
        (
            "python3.12",
            'case "$*" in *Python.h*) exit 1 ;; --version) echo Python 3.12.4 ;; esac',
            "the headers of Python 3.12.4",
        ),
        ("c++", None, "a C++ compiler, c++"),
        ("df", "echo Filesystem; echo /dev/vda 9000000 0 4000000 0% /", "4.5 GB of free disk here"),
    ],
)
def test_what_is_missing_is_said_in_one_line_before_anything_is_touched(machine, command, text, said):
    machine.setup()
    machine.installs()
    (machine.folder / "requirements-cpu.txt").write_text(f"{TORCH}\n")
    if text is None:
        (machine.bin / command).unlink()
    else:
        machine.has(machine.bin / command, text)
    done = machine.setup()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"setup needs {said}") and done.stderr.count("\n") == 1
    assert machine.installs() == []
    assert (machine.folder / ".venv/bin/pip").exists()


def test_all_that_is_missing_is_said_at_once(machine):
    (machine.bin / "c++").unlink()
    machine.has(machine.bin / "uname", "echo Linux aarch64")
    done = machine.setup(PYTHON="python3", CXX="clang++ -O1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in ("x86-64", "Python 3.11", "clang++ -O1"))
