import json

import numpy as np
import pytest
from safetensors.numpy import save

from rdmldg_ray.models.folder import (
    TINY_BASE,
    check_base_model,
    check_model,
    check_model_folder,
    looks_local,
    model_digest,
    model_folder,
    tensor_shapes,
)
from rdmldg_ray.runs.doctor import check_model_readable


@pytest.fixture
def folder(tmp_path):
    """A small model in its outer form, as ``save_pretrained`` leaves one."""
    files = {
        "config.json": b'{"model_type": "internvl"}',
        "model.safetensors": save({"a": np.zeros(2, np.float32), "b": np.zeros((2, 3), np.float32)}),
        "tokenizer.json": b"{}",
        "preprocessor_config.json": b"{}",
        "tokenizer_config.json": b'{"pad_token": "<pad>", "chat_template": "{{ messages }}"}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_packaged_model_is_whole():
    assert model_folder("tiny") == TINY_BASE
    check_base_model("tiny")


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


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_setting_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{folder / name}: .*; save or download the model again$"):
        check_model(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n",
        lambda data: b"\xff" * 64,
        lambda data: (2).to_bytes(8, "little") + b"[]",
    ],
)
def test_weights_that_are_cut_are_named(folder, change):
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"^{file}: cut or no safetensors file \(.*; download, copy or save"
    ):
        check_model(str(folder))
    finding = check_model_readable(str(folder))
    assert finding.status == "wrong" and "cut or no safetensors file" in finding.found


def test_tensors_are_told_with_their_shapes(folder):
    assert tensor_shapes(str(folder / "model.safetensors")) == {"a": [2], "b": [2, 3]}


def test_a_shard_that_is_missing_is_found(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "c": "model-2.safetensors"}}))
    with pytest.raises(
        ValueError, match=r"index\.json: lists 1 weights that no file here holds, such as c; "
    ):
        check_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "config.json",
            {"model_type": "qwen2"},
            "model type 'qwen2' is not supported; these are: .*internvl",
        ),
        ("config.json", {}, "model type 'None' is not supported"),
        ("tokenizer_config.json", {"pad_token": "<pad>"}, "no chat template"),
        (
            "tokenizer_config.json",
            {"chat_template": "x"},
            "names no pad_token, and batches are padded; set it",
        ),
        ("tokenizer_config.json", {"chat_template": "x", "pad_token": None}, "names no pad_token"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_and_may_be_a_teacher(folder, file, content, message):
    (folder / file).write_text(json.dumps(content))
    check_model(str(folder))
    with pytest.raises(ValueError, match=message):
        check_base_model(str(folder))
    assert check_model_readable(str(folder)).status == "wrong"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("chat_template.json", '{"chat_template": "x"}'),
        ("processor_config.json", '{"chat_template": "x"}'),
    ],
)
def test_a_chat_template_lies_in_one_of_several_files(folder, file, content):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2TokenizerFast"}')
    (folder / file).write_text(content)
    check_base_model(str(folder))


def test_a_padding_token_may_stand_in_the_map_of_special_tokens(folder):
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}}')
    check_base_model(str(folder))


def test_a_models_digest_is_that_of_its_files(folder):
    before = model_digest(str(folder))
    (folder / "README.md").write_text("words")
    assert model_digest(str(folder)) == before
    (folder / "tokenizer.json").write_text("{ }")
    assert model_digest(str(folder)) != before
    assert model_digest("org/name") == "org/name"


def test_another_training_of_a_large_model_has_another_digest(folder):
    size, file = 70 * 2**20, folder / "model.safetensors"
    random = np.random.default_rng(0)
    before = random.bytes(size)
    file.write_bytes(before)
    first = model_digest(str(folder))
    file.write_bytes(random.bytes(size))
    assert model_digest(str(folder)) != first
    file.write_bytes(before + b"x")
    assert model_digest(str(folder)) != first


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
