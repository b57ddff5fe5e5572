"""How the command is called: as a module, its version, and what a shell completes."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rdmldg_ray import __version__
from rdmldg_ray.cli import app


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "rdmldg_ray", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"rdmldg_ray {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("rdmldg ref", {"refilter"}),
        ("rdmldg analyze ada", {"adaptive"}),
        ("rdmldg run icon", {"iconbed", "iconbed-vqa"}),
        ("rdmldg run iconbed --dr", {"--dry-run"}),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(typed, offered):
    words = typed.split()
    environment = {
        **os.environ,
        "_RDMLDG_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    # The command's name decides the variable's, so it is called as it is installed.
    script = "import sys; sys.argv[0] = 'rdmldg'; from rdmldg_ray.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert set(done.stdout.split()) == offered, done.stderr


def test_completion_can_be_shown_and_installed():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "--install-completion" in shown and "--show-completion" in shown
