import pytest

from rdmldg_ray.models.folder import TINY_BASE, check_model, check_model_folder, looks_local, model_folder

PARTS = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")


@pytest.fixture
def folder(tmp_path):
    for name in PARTS:
        (tmp_path / name).touch()
    return tmp_path


def test_the_packaged_model_is_whole():
    assert model_folder("tiny") == TINY_BASE


def test_a_whole_folder_is_taken(folder):
    assert model_folder(str(folder)) == folder
    check_model(str(folder))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("config.json", r"no config\.json; save the model there with model\.save_pretrained"),
        ("model.safetensors", r"no \*\.safetensors weights; save the model there"),
        ("tokenizer.json", r"no tokenizer \(.*\); save it there with processor\.save_pretrained"),
        ("preprocessor_config.json", r"no image processor \(.*\); save it there with processor\.save_pretr"),
    ],
)
def test_a_missing_part_is_named_with_its_remedy(folder, part, message):
    (folder / part).unlink()
    with pytest.raises(ValueError, match=f"^{folder}: {message}"):
        model_folder(str(folder))


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("tokenizer.json", "tokenizer.model"),
        ("tokenizer.json", "vocab.json"),
        ("model.safetensors", "model-00001-of-00002.safetensors"),
        ("preprocessor_config.json", "processor_config.json"),
    ],
)
def test_a_part_may_have_another_name(folder, part, other):
    (folder / part).rename(folder / other)
    check_model_folder(folder)


def test_a_missing_folder_says_what_can_be_given(tmp_path):
    with pytest.raises(ValueError, match="no such model folder; give 'tiny', a folder or a hub id"):
        check_model(str(tmp_path / "missing"))


def test_a_hub_id_is_not_checked_before_its_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_local("org/name")
    check_model("org/name")


@pytest.mark.parametrize("path", ["./model", "../model", "/models/a", "~/model", "a/b"])
def test_a_path_or_a_folder_that_is_there_is_local(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert looks_local(path)
