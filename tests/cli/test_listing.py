import json

import pytest

from rdmldg_ray.storage import write_bytes
from tests.helpers.cli import rdmldg, rows_of
from tests.helpers.run_files import write_run


@pytest.fixture
def root(tmp_path, store):
    """A storage with a whole run, one that lacks its data set, and one that is damaged."""
    (tmp_path / "datasets").symlink_to(f"{store}/datasets")
    write_run(str(tmp_path), "small")
    write_bytes(f"{tmp_path}/runs/broken/config.yaml", b"{")
    return str(tmp_path)


def listed(root, *what):
    result = rdmldg("list", *what, "--storage", root, "--json")
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_runs_are_listed_with_how_far_they_are(root):
    found = listed(root)
    assert found["small"] == {
        "name": "small",
        "dataset": "iconbed",
        "model": "tiny",
        "held_out": ["flat"],
        # Three rounds are planned: two evaluations and MTCT, then three stages a round.
        "complete": 6,
        "stages": 12,
    }
    assert "config.yaml" in found["broken"]["damage"]
    printed = rdmldg("list", "--storage", root)
    assert ["small", "iconbed", "tiny", "flat", "6", "12"] in rows_of(printed.output)
    assert printed.exit_code == 0 and "broken" in printed.output


def test_data_sets_are_listed_with_their_teachers(root):
    found = listed(root, "datasets")
    assert found["iconbed"] == {
        "name": "iconbed",
        "samples": 1148,
        "classes": 12,
        "domains": ["flat", "gradient", "paint", "sketch"],
        "chains": ["rules"],
        "stored": True,
    }
    assert found["iconbed-vqa"]["stored"] is False and found["iconbed-vqa"]["chains"] == []


def test_an_empty_storage_has_no_runs_and_what_is_in_the_package(tmp_path):
    assert listed(str(tmp_path / "new")) == {}
    assert set(listed(str(tmp_path / "new"), "datasets")) == {"iconbed", "iconbed-vqa"}
    assert not (tmp_path / "new").exists()


def test_recipes_are_listed_with_what_they_are_for(tmp_path):
    found = listed(str(tmp_path), "recipes")
    assert found["demo"]["meaning"].startswith("The demo: ")
    assert found["iconbed-vqa"]["meaning"].endswith("both pathways, the chains and the filter use them.")
    assert all(row["meaning"].endswith(".") for row in found.values())
