import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import (
    add_lora,
    leave_out_tied,
    load_base,
    load_trained,
    make_trainable,
    save_merged,
    save_trained,
)

FLOAT32 = ModelConfig(dtype="float32")
MODULES = {"vision": "vision_model", "connector": "connector", "decoder": "text_model"}


@pytest.fixture(scope="module")
def inputs(prompts, png):
    from rdmldg_ray.datasets.images import decode_image

    return dict(
        prompts.processor(
            text=[prompts.direct_text], images=[[decode_image("a", png())]], return_tensors="pt"
        )
    )


@pytest.fixture
def adapted(load_random_base, random_base):
    """The random model with an adapter on the paper's parts, its weights random as after a training."""
    model = add_lora(load_random_base(), family_of(random_base), LoraConfig(rank=4, alpha=8))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits


@pytest.mark.parametrize("parts", [["vision"], ["connector"], ["decoder"], ["vision", "decoder"], [*MODULES]])
def test_adapters_lie_on_every_linear_layer_of_the_configured_parts_alone(
    load_random_base, random_base, parts
):
    base = load_random_base()
    linear = {
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and any(MODULES[part] in name for part in parts)
    }
    model = add_lora(base, family_of(random_base), LoraConfig(parts=parts))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    layers = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trainable}
    assert layers == linear
    assert len(trainable) == 2 * len(linear)


def test_the_papers_parts_are_the_vision_encoder_and_the_decoder(adapted):
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("vision_model" in name for name in trainable)
    assert any("text_model" in name for name in trainable)
    assert not any("connector" in name for name in trainable)


def test_everything_else_is_frozen_and_gets_no_gradient(adapted, inputs):
    adapted(**inputs, use_cache=False).logits.logsumexp(-1).sum().backward()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name


def test_new_adapters_leave_the_outputs_as_they_are(load_random_base, random_base, inputs):
    base = load_random_base()
    before = logits(base, inputs)
    after = logits(add_lora(base, family_of(random_base), LoraConfig()), inputs)
    assert torch.equal(before, after)


def test_rank_alpha_and_dropout_are_the_configured_ones(load_random_base, random_base):
    config = LoraConfig(rank=3, alpha=12, dropout=0.25, parts=["connector"])
    model = add_lora(load_random_base(), family_of(random_base), config)
    assert {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n} == {3}
    peft_config = model.peft_config["default"]
    assert (peft_config.lora_alpha, peft_config.lora_dropout) == (12, 0.25)


def test_a_saved_adapter_is_trained_on(adapted, random_base, load_random_base, inputs, tmp_path):
    save_trained(adapted, tmp_path)
    again = load_trained(load_random_base(), family_of(random_base), LoraConfig(), tmp_path)
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == set(trainable)
    assert all(torch.equal(p, trainable[n]) for n, p in again.named_parameters() if p.requires_grad)
    assert torch.equal(logits(again, inputs), logits(adapted, inputs))


def test_an_adapter_has_no_weight_of_the_base(adapted, random_base, tmp_path):
    adapted.save_pretrained(tmp_path)
    saved = (tmp_path / "adapter_model.safetensors").stat().st_size
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert saved < 4 * count + 32_768


def test_plain_transformers_reads_a_merged_export_with_the_same_outputs(
    adapted, random_base, load_random_base, inputs, tmp_path
):
    adapted.save_pretrained(tmp_path / "adapter")
    save_merged(random_base, tmp_path / "adapter", FLOAT32, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ours, plain = logits(adapted, inputs), logits(merged, inputs)
    assert ((plain - ours).norm() / ours.norm()).item() < 1e-5
    assert ((ours - logits(load_random_base(), inputs)).norm() / ours.norm()).item() > 0.1
    assert merged.state_dict().keys() == load_random_base().state_dict().keys()


def test_a_merged_export_has_the_bases_processor_and_end_of_turn(adapted, random_base, inputs, tmp_path, png):
    from rdmldg_ray.chains.pathways import PathwayPrompts
    from rdmldg_ray.datasets.images import decode_image

    adapted.save_pretrained(tmp_path / "adapter")
    save_merged(random_base, tmp_path / "adapter", FLOAT32, tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    text = PathwayPrompts(processor, ["a", "b"]).direct_text
    base = AutoProcessor.from_pretrained(random_base)
    assert text == PathwayPrompts(base, ["a", "b"]).direct_text
    image = decode_image("a", png((150, 70)))
    ours, theirs = (p(text=[text], images=[[image]], return_tensors="pt") for p in (processor, base))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert family_of(tmp_path / "merged") is family_of(random_base)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert loaded.generation_config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.fixture
def tuned(load_random_base, random_base):
    """The random model as after a full fine-tuning of its decoder."""
    config = LoraConfig(enabled=False, parts=["decoder"])
    model = make_trainable(load_random_base(), family_of(random_base), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_a_full_fine_tuning_leaves_the_trained_weights_alone(tuned, tmp_path):
    save_trained(tuned, tmp_path)
    [file] = tmp_path.iterdir()
    count = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert 0 <= file.stat().st_size - 4 * count < 32_768
    assert not any("vision" in name or "connector" in name for name in load_file(file))


def test_plain_transformers_reads_fully_fine_tuned_weights_with_the_same_outputs(
    tuned, random_base, inputs, tmp_path
):
    save_trained(tuned, tmp_path / "trained")
    save_merged(random_base, tmp_path / "trained", FLOAT32, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(logits(merged, inputs), logits(tuned, inputs))


def test_a_folder_that_no_training_left_is_named(random_base, tuned, tmp_path):
    with pytest.raises(ValueError, match="neither an adapter nor trained weights"):
        save_merged(random_base, tmp_path, FLOAT32, tmp_path / "merged")
    save_file({"model.other.weight": torch.zeros(1)}, tmp_path / "trained.safetensors")
    with pytest.raises(ValueError, match=r"has no weight 'model\.other\.weight'; set model\.path"):
        save_merged(random_base, tmp_path, FLOAT32, tmp_path / "merged")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_has_the_configured_dtype(random_base, dtype):
    model = load_base(random_base, ModelConfig(dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_packaged_model_loads():
    assert load_base(TINY_BASE, FLOAT32).config.model_type == "idefics3"


def test_a_tied_output_layer_is_left_out_while_it_is_frozen(load_random_base, random_base):
    tied = "lm_head.weight"
    family = family_of(random_base)
    model = add_lora(load_random_base(), family, LoraConfig())
    assert f"base_model.model.{tied}" in model.state_dict()
    leave_out_tied(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    left = {name for name in model.state_dict() if name not in frozen}
    assert left == {name for name, p in model.named_parameters() if p.requires_grad}

    trained = make_trainable(load_random_base(), family, LoraConfig(enabled=False, parts=["decoder"]))
    leave_out_tied(trained)
    assert tied in trained.state_dict()


def test_a_merged_export_names_no_path_of_this_machine(adapted, random_base, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")  # as those of earlier releases, which do
    assert str(random_base) in (tmp_path / "adapter/adapter_config.json").read_text()
    save_merged(random_base, tmp_path / "adapter", FLOAT32, tmp_path / "merged")
    texts = [file.read_text() for file in (tmp_path / "merged").iterdir() if file.suffix != ".safetensors"]
    assert not [text for text in texts if str(tmp_path) in text or str(random_base) in text]
