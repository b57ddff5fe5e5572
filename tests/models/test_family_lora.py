"""LoRA in both towers, and the merged export, in every supported family."""

import families
import pytest
import torch
from transformers import AutoModelForImageTextToText

from rdmldg_ray.config import LoraConfig, ModelConfig
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.loading import add_lora, load_adapter, load_base

MODEL_TYPES = sorted(set(FAMILIES) - {"smolvlm"})


@pytest.fixture(params=MODEL_TYPES)
def example(request):
    return families.make(request.param)


def run(example, model):
    ids = torch.tensor([[9, 6, *[families.IMAGE_TOKEN] * example.image_tokens, 7, 10, 11, 12]] * 2)
    extra = {}
    if example.model_type == "qwen2_5_vl":
        extra["mm_token_type_ids"] = (ids == families.IMAGE_TOKEN).int()
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False, **example.model_inputs, **extra).logits


@pytest.mark.parametrize("part", ["vision", "connector", "decoder"])
def test_each_part_has_linear_layers_that_take_an_adapter_and_shape_the_output(example, part):
    before = run(example, example.model)
    family = FAMILIES[example.model_type]
    adapted = add_lora(example.model, family, LoraConfig(rank=2, parts=[part]))
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(family.prefix(part) in name for name in trainable)
    assert torch.equal(before, run(example, adapted))
    for parameter in trainable.values():
        torch.nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(before, run(example, adapted), atol=1e-3)


def test_the_merged_export_read_back_by_plain_transformers_has_equal_logits(example, tmp_path):
    example.model.save_pretrained(tmp_path / "base")
    adapted = add_lora(example.model, FAMILIES[example.model_type], LoraConfig(rank=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    expected = run(example, adapted)
    adapted.save_pretrained(tmp_path / "adapter")

    base = load_base(tmp_path / "base", ModelConfig(dtype="float32"))
    load_adapter(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(run(example, plain), expected, rtol=1e-3, atol=1e-3)
