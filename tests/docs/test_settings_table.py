"""The table of settings in the docs is the schema's."""

import subprocess
import sys

import pytest

from rdmldg_ray.config.load import flatten_settings
from rdmldg_ray.config.schema import Config
from tests.helpers.repository import ROOT
from tools.settings_table import replace_table, settings_table

PAGE = "docs/recipes-and-settings.md"


def test_the_page_has_the_table_of_the_schema():
    text = (ROOT / PAGE).read_text()
    assert replace_table(text, settings_table()) == text, (
        f"run: python -m tools.settings_table --write {PAGE}"
    )


def test_the_table_is_written_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text((ROOT / PAGE).read_text().replace("| `lora.rank`", "| `lora.range`"))
    command = [sys.executable, "-m", "tools.settings_table", "--write", str(page)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text() == (ROOT / PAGE).read_text()


def test_every_setting_has_a_row():
    rows = [line.split("`")[1] for line in settings_table().splitlines() if line.startswith("| `")]
    defaults = Config().model_dump(mode="json")
    defaults["model"] = {
        key: str(value) for key, value in defaults["model"].items()
    }  # a mapping is one setting
    assert sorted(rows) == sorted(flatten_settings(defaults))


def test_values_are_told_in_words():
    table = settings_table()
    assert "| `mtct.batch_size` | integer > 0 | `128` |" in table
    assert "| `sarr.top_p` | number > 0, ≤ 1 | `1.0` |" in table
    assert "| `sarr.filter.min_tokens` | integer > 0 or `null` | `null` |" in table
    assert "| `evaluation.pathways` | list of `direct`, `reasoning` |" in table


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="the page needs the lines"):
        replace_table("# Settings", "")
