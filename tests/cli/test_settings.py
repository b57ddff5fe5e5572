import json

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
