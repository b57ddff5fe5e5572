"""The commands that people are shown: in the documents, in the recipes' comments and in ``--help``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import recipe_names

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(page.relative_to(REPOSITORY)) for page in REPOSITORY.glob("docs/*.md")),
    "cluster/README.md",
    "cluster/SCALE.md",
)
RECIPES = REPOSITORY / "rdmldg_ray/config/recipes"
# Text in backticks is a command when it begins with one of these and has more words.
_PROGRAMS = "rdmldg|make|python|pytest|pip|ray|aws|docker|kubectl"


@dataclass(frozen=True)
class Shown:
    """A command as it is shown, without its comment."""

    command: str
    place: str
    said: str
    """What is said of it: its headings, the paragraph before it, its line with the comment."""


def shown() -> list[Shown]:
    """Every command, one for each of alternatives such as ``tokens|entropy``."""
    found = []
    for name in DOCUMENTS:
        found += _in_document(name, (REPOSITORY / name).read_text())
    for name in recipe_names():
        comments = re.findall(r"^#(.*)", (RECIPES / f"{name}.yaml").read_text(), re.M)
        lines = [line.strip() for line in comments if line.strip().startswith("rdmldg ")]
        found += [Shown(line, f"{name}.yaml", "\n".join(comments)) for line in lines]
    for command, text in _help(get_command(app), "rdmldg"):
        found += [Shown(line, f"{command} --help", text) for line in _in_backticks(text)]
    return [one for each in found for one in _alternatives(each)]


def _in_document(name: str, text: str) -> Iterator[Shown]:
    # Commands are indented; fenced blocks hold other languages. The lines keep their numbers.
    text = re.sub(r"^```.*?^```", lambda fenced: "\n" * fenced.group().count("\n"), text, flags=re.M | re.S)
    title = heading = paragraph = ""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first = number
        while number < len(lines) and bool(lines[number].strip()) == bool(lines[first].strip()):
            number += 1
        block = lines[first:number]
        if not block[0].strip():
            continue
        if block[0].startswith("#"):
            heading = block[0]
            title = title or heading
        if not block[0].startswith("    "):
            paragraph = " ".join(block)
            for command in _in_backticks(paragraph):
                yield Shown(command, f"{name}:{first + 1}", f"{title}\n{heading}\n{paragraph}")
        else:
            # A command may continue in the next line.
            for line in "\n".join(block).replace("\\\n", " ").splitlines():
                command = " ".join(line.split(" #")[0].split())
                yield Shown(command, f"{name}:{first + 1}", f"{title}\n{heading}\n{paragraph}\n{line}")


def _in_backticks(text: str) -> list[str]:
    found = re.findall(r"`([^`]+)`", text)
    return [command for command in found if re.match(rf"({_PROGRAMS}) ", command)]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page, such as its YAML."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (REPOSITORY / page).read_text(), re.M | re.S)


def _help(command, path: str) -> Iterator[tuple[str, str]]:
    """Each command's path with its help and that of its options."""
    yield path, "\n".join([command.help or "", *[getattr(p, "help", None) or "" for p in command.params]])
    for name, below in getattr(command, "commands", {}).items():
        yield from _help(below, f"{path} {name}")


def _alternatives(one: Shown) -> list[Shown]:
    choice = re.search(r"[\w-]+(\|[\w-]+)+", one.command)
    if not choice:
        return [one]
    words = choice.group().split("|")
    return [Shown(one.command.replace(choice.group(), word), one.place, one.said) for word in words]
