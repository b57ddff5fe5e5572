"""What the README shows is what there is."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import mini
import pytest
from openai_endpoint import Endpoint, completion, serving
from typer.main import get_command

from rdmldg_ray.cli import app
from rdmldg_ray.config import dump_config, load_config
from rdmldg_ray.storage import read_table

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "cluster/README.md")


def blocks(language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """An endpoint that answers with the rules' chains, and a folder ``photos`` of the images it knows."""
    mini.write_mini(str(tmp_path / "made"))
    samples = read_table(str(tmp_path / "made/datasets/mini/samples")).to_pylist()
    chains = read_table(str(tmp_path / "made/datasets/mini/chains/rules")).to_pylist()
    texts = {row["id"]: row["text"] for row in chains}
    for number, row in enumerate(samples):
        folder = tmp_path / "photos" / row["domain"] / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(row["image"])
    with serving(Endpoint(samples, lambda row, before: completion(texts[row["id"]]))) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
        yield endpoint


@pytest.mark.slow
def test_the_python_snippet_runs(teacher, tmp_path, monkeypatch, ray_cluster, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in mini.SETTINGS if not setting.startswith("data.")]
    Path("my.yaml").write_text(dump_config(load_config("demo", [*settings, "name=mine"])))
    [snippet] = blocks("python")
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    results = names["results"]
    assert len(teacher.requests) == len(teacher.samples)
    assert results.held_out == ["flat"] and results.models("flat") == ["zero-shot", "mtct", "sarr-1"]
    assert "flat sarr-1 {'direct': {'target_in': " in capsys.readouterr().out
    assert names["answers"].num_rows == 2 * (30 + 2 * 6)


def documented():
    """The commands of the indented blocks and in backticks, by where they stand."""
    for name in DOCUMENTS:
        text = (REPOSITORY / name).read_text().replace("\\\n", " ")
        for number, line in enumerate(text.splitlines(), 1):
            found = re.findall(r"^    (rdmldg .*)", line) or re.findall(r"`(rdmldg [^`]*)`", line)
            for command in found:
                yield pytest.param(command.split(" #")[0], id=f"{name}:{number}")


@pytest.mark.parametrize("line", documented())
def test_every_command_that_is_shown_can_be_given(line, monkeypatch):
    """Each with its options parsed, its recipe and settings read; what it does is tested elsewhere."""
    # As cluster/README.md says before it submits.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    words = shlex.split(line)[1:]
    for alternative in next((word.split("|") for word in words if "|" in word), [""]):
        parse([alternative if "|" in word else word for word in words])


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


def test_make_has_the_targets_that_are_shown():
    makefile = (REPOSITORY / "Makefile").read_text()
    for name in DOCUMENTS:
        for target in re.findall(r"^    make (\w+)", (REPOSITORY / name).read_text(), re.M):
            assert f"\n{target}:" in makefile


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README.read_text())
    assert pictures == ["docs/architecture.svg", "docs/report.png"]
    for picture in pictures:
        assert (REPOSITORY / picture).stat().st_size < 200_000
    ElementTree.parse(REPOSITORY / pictures[0])
