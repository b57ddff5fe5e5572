"""LoRA in both towers, full fine-tuning, and the merged export, in every supported family."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.loading import (
    add_lora,
    load_base,
    load_trained,
    rename_published,
    save_published,
    save_trained,
    train_parts,
)
from tests.helpers import families


@pytest.fixture(params=families.EXAMPLES)
def example(request):
    return families.make(request.param)


def run(example, model):
    ids = torch.tensor([[9, 6, *[families.IMAGE_TOKEN] * example.image_tokens, 7, 10, 11, 12]] * 2)
    extra = example.token_types(ids)
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False, **example.model_inputs, **extra).logits


@pytest.mark.parametrize("part", ["vision", "connector", "decoder"])
def test_each_part_has_linear_layers_that_take_an_adapter_and_shape_the_output(example, part):
    before = run(example, example.model)
    family = example.family
    adapted = add_lora(example.model, family, LoraConfig(rank=2, parts=[part]))
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    prefixes = tuple(f"base_model.model.{prefix}" for prefix in family.prefixes(part))
    assert all(name.startswith(prefixes) for name in trainable)
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in trainable), prefix
    assert torch.equal(before, run(example, adapted))
    for parameter in trainable.values():
        torch.nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(before, run(example, adapted), atol=1e-3)


def test_the_merged_export_read_back_by_plain_transformers_has_equal_logits(example, tmp_path):
    example.model.save_pretrained(tmp_path / "base")
    adapted = add_lora(example.model, example.family, LoraConfig(rank=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    expected = run(example, adapted)
    adapted.save_pretrained(tmp_path / "adapter")

    base = load_base(tmp_path / "base", ModelConfig(dtype="float32"))
    save_published(
        PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload(), tmp_path / "merged"
    )
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(run(example, plain), expected, rtol=1e-3, atol=1e-3)


def test_the_clip_tower_of_llava_is_written_as_in_published_checkpoints_in_shards_too(tmp_path):
    model = families.make("llava").model
    save_published(model, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert "vision_tower.vision_model.embeddings.class_embedding" in whole
    assert not any(name.startswith("vision_tower.embeddings") for name in whole)
    save_published(load_base(tmp_path / "whole", ModelConfig(dtype="float32")), tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == whole.keys()

    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    names = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    rename_published(tmp_path / "shards", FAMILIES["llava"])
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == whole.keys()
    assert len(names) == len(index)
    for name, file in index.items():
        assert torch.equal(load_file(tmp_path / "shards" / file)[name], whole[name])


@pytest.mark.parametrize("part", ["vision", "connector", "decoder"])
def test_full_fine_tuning_changes_the_part_and_leaves_the_rest_as_it_was(example, part):
    family = example.family
    model = train_parts(example.model, family, LoraConfig(enabled=False, parts=[part]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    ids = torch.tensor([[9, 6, *[families.IMAGE_TOKEN] * example.image_tokens, 7, 10, 11, 12]] * 2)
    extra = example.token_types(ids)
    model.train()(input_ids=ids, use_cache=False, **example.model_inputs, **extra).logits.logsumexp(
        -1
    ).sum().backward()
    torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.1).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    own = {name for name in before if name.startswith(family.prefixes(part))}
    assert changed
    assert changed <= own | ({"lm_head.weight"} if part == "decoder" else set())


def test_trained_weights_go_on_over_the_base(example, tmp_path):
    config = LoraConfig(enabled=False, parts=["vision", "decoder"])
    family = example.family
    example.model.save_pretrained(tmp_path / "base")
    model = train_parts(example.model, family, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    save_trained(model, tmp_path / "trained")
    base = load_base(tmp_path / "base", ModelConfig(dtype="float32"))
    again = load_trained(base, family, config, tmp_path / "trained")
    assert torch.equal(run(example, again), run(example, model))
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
    assert names[0] == names[1]
