"""The memory model against what autograd keeps, at the layers' true sizes."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from rdmldg_ray.config.load import load_config
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.loading import make_trainable
from rdmldg_ray.mtct import output_layer
from rdmldg_ray.mtct.positions import decoder_inputs
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out
from rdmldg_ray.runs.doctor import check_gpu_memory
from rdmldg_ray.runs.memory import (
    GIB,
    GPUS,
    LOSS,
    engine_memory,
    kept_activations,
    model_shape,
    run_memory,
    training_memory,
)

IMAGE = 5
NO_CHECKPOINTS = "workers.gradient_checkpointing=false"
SMALL_IMAGES = ["model.mm_processor_kwargs.size.longest_edge=50176"]
_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
# As the published models' config.json have them.
INTERNVL3_8B = {
    "model_type": "internvl",
    "text_config": {"model_type": "qwen2", **_7B, "num_hidden_layers": 28, "vocab_size": 151674},
    "vision_config": {"attention_bias": True, "image_size": [448, 448]},
    "image_token_id": IMAGE,
    "image_seq_length": 256,
    "tie_word_embeddings": False,
}
LLAVA_7B = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "image_token_index": IMAGE,
    "tie_word_embeddings": False,
}
QWEN_7B = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        **_7B,
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32},
    "image_token_id": IMAGE,
    "vision_start_token_id": 6,
    "tie_word_embeddings": False,
}
SMOLVLM = {
    "model_type": "idefics3",
    "text_config": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    "scale_factor": 4,
    "image_token_id": IMAGE,
    "tie_word_embeddings": True,
}
INTERNVL3_2B = INTERNVL3_8B | {
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "num_hidden_layers": 28,
        "vocab_size": 151674,
    }
}
QWEN2_VL_7B = QWEN_7B | {"model_type": "qwen2_vl", "vision_config": {}}
QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 36,
    "vocab_size": 151936,
}
INTERNVL3_5_8B = INTERNVL3_8B | {"text_config": {"model_type": "qwen3", **QWEN3_8B}}
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "text_config": QWEN3_8B
    | {"rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}},
    "vision_config": {"out_hidden_size": 4096},
    "image_token_id": IMAGE,
    "vision_start_token_id": 6,
    "tie_word_embeddings": False,
}
MODELS = {
    "pacs-internvl3-2b": INTERNVL3_2B,
    "pacs-internvl3-8b": INTERNVL3_8B,
    "pacs-llava-1.5-7b": LLAVA_7B,
    "pacs-qwen2.5-vl-7b": QWEN_7B,
    "pacs-qwen3-vl-8b": QWEN3_VL_8B,
    "pacs-smolvlm-256m": SMOLVLM,
}
# Models without a recipe of their own, with the one that they are measured under.
OTHERS = {
    "internvl3.5-8b": (INTERNVL3_5_8B, "pacs-internvl3-8b"),
    "qwen2-vl-7b": (QWEN2_VL_7B, "pacs-qwen2.5-vl-7b"),
}


NARROW = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
NARROW |= {"head_dim": 64, "num_hidden_layers": 1, "vocab_size": 64}
# What stays of each part, with layers of the true width where they differ from another family's.
ONE_LAYER = {
    "pacs-internvl3-8b": (
        {"num_hidden_layers": 1, "vocab_size": 64},
        {"num_hidden_layers": 1, "image_size": [112, 112]},
        {"image_seq_length": 16},
    ),
    "internvl3.5-8b": (
        {"num_hidden_layers": 1, "vocab_size": 64},
        {"num_hidden_layers": 1, "image_size": [112, 112]},
        {"image_seq_length": 16},
    ),
    "pacs-llava-1.5-7b": (NARROW, {"num_hidden_layers": 1, "image_size": 112}, {}),
    "pacs-qwen2.5-vl-7b": (NARROW, {"depth": 1, "out_hidden_size": 256}, {}),
    "pacs-qwen3-vl-8b": (
        NARROW,
        {"depth": 1, "out_hidden_size": 256, "deepstack_visual_indexes": [0]},
        {},
    ),
    "qwen2-vl-7b": (NARROW, {"depth": 1, "hidden_size": 256}, {}),
    "pacs-smolvlm-256m": (
        {"num_hidden_layers": 1, "vocab_size": 64},
        {"num_hidden_layers": 1, "image_size": 256},
        {},
    ),
}


def known(name):
    """What ``config.json`` has of a model, and the recipe that it is measured under."""
    return OTHERS[name] if name in OTHERS else (MODELS[name], name)


def one_layer(name):
    """The same model with one layer of each kind, few words and mostly a small image."""
    text, vision, seen = ONE_LAYER[name]
    described, _ = known(name)
    if "qwen" in name:
        text = text | {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}}
    return (
        described
        | seen
        | {
            "text_config": described["text_config"] | text,
            "vision_config": described["vision_config"] | vision,
        }
    )


def kept_bytes(described, config, text_tokens):
    """What autograd keeps for one image and so many tokens of text, in bytes, besides weights."""
    kind = described["model_type"]
    settings = {key: value for key, value in described.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(kind, **settings), attn_implementation="sdpa"
        )
        adapted = make_trainable(model, FAMILIES[kind], config.lora)
    adapted = adapted.to(torch.bfloat16).to_empty(device="cpu").train()
    with torch.no_grad():
        for tensor in [*adapted.parameters(), *adapted.buffers()]:
            tensor.zero_()
    shape = model_shape(config, described)
    if "qwen" in kind:
        side = int(shape.patches**0.5)
        pixels = {
            "pixel_values": torch.ones(
                side * side, 3 * 2 * model.config.vision_config.patch_size**2, dtype=torch.bfloat16
            ),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        }
        assert side * side == shape.patches
    else:
        side = model.config.vision_config.image_size
        side = side[0] if isinstance(side, list | tuple) else side
        pixels = {
            "pixel_values": torch.ones(1, *[1] * (kind == "idefics3"), 3, side, side, dtype=torch.bfloat16)
        }
    prefix = [6, *[IMAGE] * shape.image_tokens, 7]
    layout = lay_out([prefix], [[Branch(0, [8], [9] * text_tokens)]], 0)
    weights = {t.untyped_storage().data_ptr() for t in [*adapted.parameters(), *adapted.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = adapted(
            input_ids=layout.input_ids,
            attention_mask=additive_mask(layout.segments, torch.bfloat16),
            logits_to_keep=layout.keep,
            use_cache=False,
            **pixels,
            **decoder_inputs(FAMILIES[kind], model, layout, pixels),
        ).logits
    del logits
    return sum(size for size, _ in kept.values()), layout.input_ids.shape[1], shape


@pytest.mark.parametrize("name", ONE_LAYER)
def test_what_autograd_keeps_is_what_is_estimated(name):
    config = load_config(known(name)[1], [NO_CHECKPOINTS, *(SMALL_IMAGES if "qwen" in name else [])])
    kept, tokens, shape = kept_bytes(one_layer(name), config, text_tokens=32)
    assert kept_activations(config, shape, tokens) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("parts", "lora"),
    [(["decoder"], "true"), (["vision"], "true"), (["vision", "connector", "decoder"], "false")],
)
def test_it_is_so_for_other_parts_and_for_full_fine_tuning(parts, lora):
    name = "pacs-smolvlm-256m"
    config = load_config(name, [NO_CHECKPOINTS, f"lora.parts={parts}", f"lora.enabled={lora}"])
    kept, tokens, shape = kept_bytes(one_layer(name), config, text_tokens=512)
    assert kept_activations(config, shape, tokens) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize(
    ("name", "billions", "millions"),
    [
        ("pacs-internvl3-8b", 7.94, 23.7),
        ("internvl3.5-8b", 8.53, 25.4),
        ("pacs-llava-1.5-7b", 7.06, 23.5),
        ("pacs-qwen2.5-vl-7b", 8.29, 25.8),
        ("pacs-qwen3-vl-8b", 8.77, 25.7),
        ("qwen2-vl-7b", 8.29, 25.4),
    ],
)
def test_parameters_are_those_of_the_published_models(name, billions, millions):
    described, recipe = known(name)
    shape = model_shape(load_config(recipe), described)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.001)
    assert shape.trained / 1e6 == pytest.approx(millions, rel=0.01)


def test_internvl3_8b_keeps_what_was_measured_of_all_its_layers():
    config = load_config("pacs-internvl3-8b", [NO_CHECKPOINTS])
    shape = model_shape(config, INTERNVL3_8B)
    assert shape.decoder.kept(2, True, 8) == pytest.approx(223e3, rel=0.01)
    vision = shape.vision.number * shape.patches * shape.vision.kept(2, True, 8)
    assert vision == pytest.approx(773 * 2**20, rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_for_80_gb_fits_there_and_large_ones_by_checkpoints_alone(name):
    config = load_config(name)
    shape = model_shape(config, MODELS[name])
    gpu = GPUS["80 GB"] * GIB
    fits = training_memory(config, shape, config.mtct).largest_micro_batch(gpu)
    assert fits >= config.mtct.micro_batch_size
    plain = load_config(name, [NO_CHECKPOINTS])
    without = training_memory(plain, shape, plain.mtct).largest_micro_batch(gpu)
    assert (without < config.mtct.micro_batch_size) == config.workers.gradient_checkpointing
    assert engine_memory(config, shape).answers(gpu) > 40


@pytest.mark.parametrize(
    ("stage", "workers", "enabled", "gradients", "optimizer"),
    [
        # DeepSpeed's buffer of 5e8 gradients in bfloat16, and for each parameter 2 bytes and 12.
        (1, 1, True, 10**9 + 2 * 1000, 12 * 1000),
        (1, 4, True, 10**9 + 2 * 1000, 3 * 1000),
        (2, 4, True, 10**9 + 500, 3 * 1000),
        (3, 4, False, 500, 3 * 1000),
    ],
)
def test_state_is_shared_as_zero_shares_it(stage, workers, enabled, gradients, optimizer):
    config = load_config(
        "pacs-smolvlm-256m",
        [f"workers.zero_stage={stage}", f"workers.num_workers={workers}", f"lora.enabled={enabled}".lower()],
    )
    shape = replace(model_shape(config, one_layer("pacs-smolvlm-256m")), parameters=4000, trained=1000)
    memory = training_memory(config, shape, config.mtct)
    assert (memory.gradients, memory.optimizer) == (gradients, optimizer)
    assert memory.weights == (2 * 5000 if enabled else 2000 + 8000)


def test_what_does_not_fit_is_told_with_a_micro_batch_that_does(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(INTERNVL3_8B))
    config = load_config("pacs-internvl3-8b", [f"model.path={tmp_path}", NO_CHECKPOINTS])
    memory = run_memory(config)
    assert memory is not None and set(memory.trainings) == {"mtct", "sarr.training"}
    found = memory.misfits(GPUS["80 GB"] * GIB)
    largest = memory.trainings["mtct"].largest_micro_batch(GPUS["80 GB"] * GIB)
    assert 0 < largest < 8
    assert [line.split(": ")[1] for line in found] == [
        f"set mtct.micro_batch_size={largest}",
        f"set sarr.training.micro_batch_size={largest}",
    ]
    assert f"80 GB: {largest}" in memory.lines()[0]
    assert "take a larger GPU" in memory.misfits(8 * GIB)[0] and len(memory.misfits(8 * GIB)) == 3
    finding = check_gpu_memory(config)
    assert finding.check == "GPU memory" and "mtct: about" in finding.found


def test_it_is_not_known_without_gpus_or_the_models_config(tmp_path):
    assert run_memory(load_config("demo")) is None
    assert run_memory(load_config("pacs-internvl3-8b", ["model.path=no-such-org/no-such-model"])) is None


def test_the_memory_of_logits_is_that_of_a_chunk():
    assert LOSS == 12 * output_layer.CHUNK
