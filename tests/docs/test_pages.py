"""Links, pictures, recipes and commands of the documents are valid; ``test_commands.py`` runs them."""

import re
import shlex
from xml.etree import ElementTree

import pytest
import yaml
from typer.main import get_command

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.sweeps.space import load_space
from tests.helpers import documented
from tests.helpers.repository import ROOT

PAGES = sorted(
    page.relative_to(ROOT)
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("cluster/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)
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
        load_config(given["recipe"], given.get("overrides"))


def test_the_readme_is_short():
    assert len(documented.README.read_text().split()) < 1000


def links(text):
    """Targets of a page's links and pictures, without its code."""
    text = re.sub(r"^```.*?^```|^    .*?$", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page):
    """What a heading is called in a link, as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for link in links((ROOT / page).read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_are_named_are_there(page):
    """Those of the repository, of the package, and those beside the page."""
    around = (ROOT, ROOT / "rdmldg_ray", (ROOT / page).parent)
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|sh|md))`", (ROOT / page).read_text()):
        assert any((folder / name).exists() for folder in around), f"{page}: {name}"


def test_every_page_of_the_docs_is_listed():
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
    assert pages <= set(links((ROOT / "docs/README.md").read_text()))
    assert {f"docs/{page}" for page in pages} <= set(links(documented.README.read_text()))


def test_pictures_are_small_and_each_is_shown():
    shown = {
        picture
        for page in PAGES
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (ROOT / page).read_text())
    }
    pictures = [picture for picture in ROOT.glob("docs/*") if picture.suffix in (".svg", ".png")]
    assert {picture.name for picture in pictures} == {picture.rpartition("/")[2] for picture in shown}
    for picture in pictures:
        assert picture.stat().st_size < 200_000
    ElementTree.parse(ROOT / "docs/architecture.svg")


def test_recipe_and_space_of_the_docs_are_valid(tmp_path):
    recipe, space = documented.blocks("docs/recipes-and-settings.md", "yaml")
    (tmp_path / "my.yaml").write_text(recipe)
    (tmp_path / "space.yaml").write_text(space)
    assert load_config(str(tmp_path / "my.yaml")).name == "mine"
    assert load_space(str(tmp_path / "space.yaml"), Config()).trials == 24


def test_the_citation_is_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["url"] in documented.README.read_text()
    [entry] = documented.blocks("docs/method.md", "bibtex")
    assert all(author["family-names"] in entry for author in citation["preferred-citation"]["authors"])
