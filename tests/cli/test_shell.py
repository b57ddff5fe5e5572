"""How the command is called: as a module, its version, and what a shell completes."""

import os
import subprocess
import sys

import pytest

from rdmldg_ray import __version__

# The command's name decides the names of variables and files.
AS_INSTALLED = "import sys; sys.argv[0] = 'rdmldg'; from rdmldg_ray.cli import app; app()"


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
    done = subprocess.run(
        [sys.executable, "-c", AS_INSTALLED], capture_output=True, text=True, env=environment
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_completion_can_be_installed(tmp_path):
    # In bash, of which the command asks what the shell is, and which would put a last command in its place.
    script = f'{sys.executable} -c "{AS_INSTALLED}" --install-completion && echo done'
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert "bash completion installed in" in done.stdout, done.stdout + done.stderr
    assert "rdmldg.sh" in (tmp_path / ".bashrc").read_text()
    assert "_RDMLDG_COMPLETE=complete_bash" in (tmp_path / ".bash_completions/rdmldg.sh").read_text()
