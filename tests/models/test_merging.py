"""Weights merged one by one are those of the merged model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.loading import (
    ADAPTER_CONFIG,
    load_base,
    load_merged,
    make_trainable,
    save_published,
    save_trained,
)
from rdmldg_ray.models.merging import UnsupportedMergeError, merged_weights, plan_merge, weight_files
from tests.helpers import families

EVERY_FAMILY = pytest.mark.parametrize("example", families.EXAMPLES)
FLOAT32 = ModelConfig(dtype="float32")
CPU = torch.device("cpu")
ADAPTER = LoraConfig(rank=4, alpha=12, parts=["vision", "connector", "decoder"])
FULL = LoraConfig(enabled=False, parts=["vision", "decoder"])


def write_base(name, folder):
    save_published(families.make(name).model, folder)
    return folder


def write_trained(base, folder, lora=ADAPTER):
    model = make_trainable(load_base(base, FLOAT32), family_of(base), lora)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    save_trained(model, folder)
    return folder


def merged_files(base, trained, folder, config=FLOAT32):
    """What the merged model has under the names of published checkpoints."""
    save_published(load_merged(base, trained, config), folder)
    return {name: weight for file in weight_files(folder) for name, weight in load_file(file).items()}


def merged(base, trained, dtype=torch.float32):
    return dict(merged_weights(plan_merge(base, trained), dtype, CPU))


@EVERY_FAMILY
@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
def test_they_are_the_merged_models(example, lora, tmp_path):
    base = write_base(example, tmp_path / "base")
    trained = write_trained(base, tmp_path / "trained", lora)
    expected = merged_files(base, trained, tmp_path / "merged")
    found = merged(base, trained)
    assert found.keys() == expected.keys()
    before = load_file(base / "model.safetensors")
    assert sum(not torch.equal(found[name], before[name]) for name in found) > 20
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)


@EVERY_FAMILY
def test_without_what_was_trained_they_are_the_bases(example, tmp_path):
    base = write_base(example, tmp_path / "base")
    before = load_file(base / "model.safetensors")
    found = merged(base, None)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in found)


def test_a_base_in_shards_is_read_whole(tmp_path):
    base = write_base("internvl", tmp_path / "base")
    trained = write_trained(base, tmp_path / "trained")
    whole = merged(base, trained)
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, base / file, metadata={"format": "pt"})
    (base / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    found = merged(base, trained)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_in_bfloat16_a_merged_weight_is_rounded_once(tmp_path):
    base = write_base("internvl", tmp_path / "base")
    trained = write_trained(base, tmp_path / "trained")
    weights = load_file(base / "model.safetensors")
    rounded = {name: w.bfloat16().float() for name, w in weights.items()}
    save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})
    exact = merged_files(base, trained, tmp_path / "merged")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    merge = plan_merge(base, trained)
    found = dict(merged_weights(merge, torch.bfloat16, CPU))
    assert merge.changed
    for name in merge.changed:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 8}},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_that_is_not_plain_is_left_to_peft(setting, tmp_path):
    base = write_base("internvl", tmp_path / "base")
    trained = write_trained(base, tmp_path / "trained")
    config = json.loads((trained / ADAPTER_CONFIG).read_text())
    (trained / ADAPTER_CONFIG).write_text(json.dumps(config | setting))
    with pytest.raises(UnsupportedMergeError):
        plan_merge(base, trained)


def test_an_adapter_of_another_base_is_not_merged_in_part(tmp_path):
    base = write_base("internvl", tmp_path / "base")
    other = write_base("idefics3", tmp_path / "other")
    with pytest.raises(UnsupportedMergeError, match="has no weight for"):
        plan_merge(other, write_trained(base, tmp_path / "trained"))


def test_a_folder_in_which_nothing_was_trained_is_refused(tmp_path):
    base = write_base("internvl", tmp_path / "base")
    trained = write_trained(base, tmp_path / "trained")
    shutil.rmtree(trained)
    trained.mkdir()
    with pytest.raises(ValueError, match="neither an adapter nor trained weights"):
        plan_merge(base, trained)
