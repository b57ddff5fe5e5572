"""What the README shows is what there is; ``test_readme_commands.py`` runs it."""

import re
import shlex
from xml.etree import ElementTree

import pytest
from typer.main import get_command

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from tests.helpers import documented

COMMANDS = {one.command: one.place for one in documented.shown() if one.command.startswith("rdmldg ")}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_is_shown_can_be_given(line, monkeypatch):
    """Each with its options parsed, its recipe and settings read."""
    # As cluster/README.md says before it submits.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parse(shlex.split(line)[1:])


def parse(words):
    command, context = get_command(app), None
    if words[0].startswith("--"):
        assert words[0] in [option for parameter in command.params for option in parameter.opts]
        return
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command = command.commands[words[0]]
        words = words[1:]
    if words:
        context = command.make_context(command.name, list(words))
    given = context.params if context else {}
    if command.name == "submit":
        parse([given["job"], *context.args])
    elif given.get("recipe", "my.yaml") not in ("my.yaml", "RECIPE"):
        load_config(given["recipe"], given["overrides"])


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", documented.README.read_text())
    assert pictures == ["docs/architecture.svg", "docs/report.png"]
    for picture in pictures:
        assert (documented.REPOSITORY / picture).stat().st_size < 200_000
    ElementTree.parse(documented.REPOSITORY / pictures[0])
