import pytest

from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.config.settings import _ELSEWHERE, called_elsewhere, find_settings, sections


def paths(key):
    return [setting.path for section in find_settings(key) for setting in section.settings]


def test_a_setting_a_section_and_all_are_found():
    assert paths("mtct.epochs") == ["mtct.epochs"]
    assert set(paths("mtct.weights")) == {"mtct.weights.direct", "mtct.weights.reasoning"}
    assert {"mtct.epochs", "mtct.weights.direct"} < set(paths("mtct"))
    assert len(paths("")) == sum(len(section.settings) for section in sections()) > 80


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("mtc", "no setting 'mtc'; `rdmldg settings` lists all"),
        ("epochs", "did you mean mtct.epochs or sarr.training.epochs?"),
        ("mtct.lora_r", "did you mean lora.rank?"),
    ],
)
def test_another_key_is_refused_with_what_may_be_meant(key, message):
    with pytest.raises(ValueError, match="no setting") as error:
        find_settings(key)
    assert message in str(error.value)


@pytest.mark.parametrize("word", _ELSEWHERE)
def test_every_word_of_other_trainers_means_a_setting(word):
    assert called_elsewhere(word)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1e-4", "'mtct.learning_rate' or 'sarr.training.learning_rate'"),
        ("mtct.lr=1e-4", "'learning_rate'"),
        ("sarr.training.num_train_epochs=2", "'epochs'"),
        ("per_device_train_batch_size=2", "'mtct.micro_batch_size' or 'sarr.training.micro_batch_size'"),
        ("lora.r=8", "'rank'"),
        ("dataset=pacs", "'data.dataset'"),
        ("mtct.num_workers=2", "'workers.num_workers'"),
        ("held_out=photo", "'data.held_out'"),
        ("sarr.temperature=0.5", "'temperatures'"),
    ],
)
def test_a_key_in_the_wrong_place_or_of_another_trainer_names_the_right_one(override, meant):
    with pytest.raises(ConfigError) as error:
        load_config("demo", [override])
    key = override.split("=")[0]
    assert f"  {key}: unknown key; did you mean {meant}?" in str(error.value)
