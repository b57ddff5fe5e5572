import pytest

from rdmldg_ray.config.load import ConfigError, flatten_settings, load_config, recipe_names
from rdmldg_ray.config.starting import starting_recipe


def loaded(tmp_path, *arguments, **named):
    file = tmp_path / "mine.yaml"
    file.write_text(starting_recipe(*arguments, **named))
    return load_config(str(file))


@pytest.mark.parametrize("recipe", recipe_names())
def test_it_is_the_shipped_one_under_another_name(tmp_path, recipe):
    assert loaded(tmp_path, "mine", recipe) == load_config(recipe, ["name=mine"])


@pytest.mark.parametrize("dataset", ["mine", "no", "1e-5", "a.b"])
def test_data_set_and_teacher_are_ones_own_and_each_domain_is_held_out(tmp_path, dataset):
    config = loaded(tmp_path, "mine", "demo", dataset=dataset, chains="gpt-4o")
    shipped = flatten_settings(load_config("demo").model_dump(mode="json"))
    now = flatten_settings(config.model_dump(mode="json"))
    assert {key: value for key, value in now.items() if value != shipped[key]} == {
        "name": "mine",
        "data.dataset": dataset,
        "data.held_out": ["all"],
        "data.chains": "gpt-4o",
    }


def test_each_setting_has_its_meaning_above_it():
    lines = starting_recipe("mine", "demo").splitlines()
    place = lines.index("  epochs: 4")
    assert lines[place - 1] == "  # Passes over the training set."
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine", "demmo"), "did you mean 'demo'"),
        (("mine", "demo", "../x"), "data.dataset"),
        (("a/b", "demo"), "name"),
    ],
)
def test_what_is_not_valid_is_told_at_once(arguments, message):
    with pytest.raises(ConfigError, match=message):
        starting_recipe(*arguments)
