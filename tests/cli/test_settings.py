import json

from rdmldg_ray.config.load import load_config
from tests.helpers.cli import error_of, rdmldg, rows_of


def test_a_section_is_explained():
    result = rdmldg("settings", "sarr.filter")
    assert result.exit_code == 0
    assert ["sarr.filter.conclusion", "label, any", "label"] in [row[:3] for row in rows_of(result.output)]
    assert "sarr.filter: Which of the model's own chains are accepted" in result.output


def test_all_settings_are_a_document_for_scripts():
    found = json.loads(rdmldg("settings", "--json").stdout)
    [epochs] = [setting for setting in found if setting["path"] == "mtct.epochs"]
    assert epochs["default"] == 3 and epochs["values"] == "integer > 0"


def test_an_unknown_setting_is_an_error():
    assert error_of("settings", "lr").startswith("no setting 'lr'; did you mean mtct.learning_rate or ")


def test_a_recipe_of_ones_own_is_begun_and_nothing_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rdmldg("init", "my.yaml", "--dataset", "mine", "--chains", "gpt-4o")
    assert result.exit_code == 0 and "rdmldg run my.yaml --dry-run" in result.output
    assert load_config("my.yaml").data.dataset == "mine"
    before = (tmp_path / "my.yaml").read_text()
    assert error_of("init", "my.yaml").startswith("my.yaml: is there already")
    assert (tmp_path / "my.yaml").read_text() == before
    assert "ends in .yaml" in error_of("init", "my.json")
    assert "did you mean 'demo'" in error_of("init", "other.yaml", "--from", "demmo")
    assert not (tmp_path / "other.yaml").exists()
