"""Tiny random models of the supported families, and inputs for them made by hand.

Made by hand because the default image processors of some families need torchvision, which has no
build beside the CPU build of torch; the models themselves do not.
"""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from rdmldg_ray.models.families import FAMILIES, Family
from rdmldg_ray.mtct.loss import PathwayLosses, pathway_losses
from rdmldg_ray.mtct.positions import decoder_inputs
from rdmldg_ray.mtct.shared_prefix import Layout

IMAGE_TOKEN = 5
_TEXT = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "initializer_range": 0.15,
    "max_position_embeddings": 256,
}
_VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "initializer_range": 0.15,
}


@dataclass(frozen=True)
class Example:
    """A model with a batch of two images and the tokens that stand for each image."""

    model_type: str
    model: torch.nn.Module
    image_tokens: int
    model_inputs: dict[str, torch.Tensor]

    @property
    def family(self) -> Family:
        """The model's family."""
        return FAMILIES[self.model_type]

    def token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the family's processor adds to a prompt's tokens, where it adds anything."""
        if self.family.positions == "sequence":
            return {}
        return {"mm_token_type_ids": (input_ids == IMAGE_TOKEN).int()}

    def one(self, row: int) -> dict[str, torch.Tensor]:
        """The image inputs of one row alone."""
        if self.family.positions == "mrope":
            patches = len(self.model_inputs["pixel_values"]) // 2
            pixels = self.model_inputs["pixel_values"][row * patches : (row + 1) * patches]
            grid = self.model_inputs["image_grid_thw"][row : row + 1]
            return {"pixel_values": pixels, "image_grid_thw": grid}
        return {name: value[row : row + 1] for name, value in self.model_inputs.items()}

    def prefix(self, question: list[int]) -> list[int]:
        """An image and a question."""
        # Qwen finds its images by the token that starts one; to the others it is a token like any other.
        return [9, 6, *[IMAGE_TOKEN] * self.image_tokens, 7, *question]

    def losses(self, layout: Layout, attention_mask) -> PathwayLosses:
        """The losses of two laid-out rows, one for each image."""
        logits = self.model(
            input_ids=layout.input_ids,
            attention_mask=attention_mask,
            logits_to_keep=layout.keep,
            use_cache=False,
            **self.model_inputs,
            **decoder_inputs(self.family, self.model, layout, self.model_inputs),
        ).logits
        return pathway_losses(logits, layout.targets, layout.target_pathway, "sum")

    def gradients(self, losses: PathwayLosses) -> dict[str, torch.Tensor]:
        """Of the sum of both pathways' losses."""
        self.model.zero_grad()
        losses.weighted_sum(1.0, 1.0).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of the gradients of all parameters together."""
    assert ours.keys() == theirs.keys()
    ours, theirs = (torch.cat([g[name].flatten().cpu() for name in theirs]) for g in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


def make(name: str) -> Example:
    """An example of ``EXAMPLES`` in float32, with the same weights every time."""
    torch.manual_seed(0)
    config, image_tokens, inputs = _PARTS[name]()
    model_type = name.removesuffix("_qwen3")
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(model_type, **config), dtype=torch.float32, attn_implementation="sdpa"
    )
    return Example(model_type, model, image_tokens, inputs)


def _idefics3():
    config = {
        "vision_config": {**_VISION, "image_size": 32, "patch_size": 8},
        "text_config": {**_TEXT, "model_type": "llama", "head_dim": 16, "pad_token_id": 0},
        "scale_factor": 2,
        "image_token_id": IMAGE_TOKEN,
    }
    return config, 4, {"pixel_values": torch.randn(2, 1, 3, 32, 32)}


def _internvl():
    config = {
        "vision_config": {**_VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "image_token_id": IMAGE_TOKEN,
        "downsample_ratio": 0.5,
    }
    return config, 4, {"pixel_values": torch.randn(2, 3, 32, 32)}


def _internvl_qwen3():
    config, *others = _internvl()
    return config | {"text_config": {**_TEXT, "model_type": "qwen3", "head_dim": 24}}, *others


def _llava():
    config = {
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        "text_config": {**_TEXT, "model_type": "llama"},
        "image_token_index": IMAGE_TOKEN,
    }
    return config, 16, {"pixel_values": torch.randn(2, 3, 32, 32)}


def _qwen2_vl():
    return _qwen({"embed_dim": 48, "hidden_size": 48, "mlp_ratio": 2})


def _qwen2_5_vl():
    sizes = {"hidden_size": 48, "intermediate_size": 64, "out_hidden_size": 48}
    return _qwen(sizes | {"window_size": 56, "fullatt_block_indexes": [1]})


def _qwen3_vl():
    sizes = {"hidden_size": 48, "intermediate_size": 64, "out_hidden_size": 48, "num_position_embeddings": 16}
    example = _qwen(sizes | {"deepstack_visual_indexes": [0]})
    example[0]["text_config"]["head_dim"] = 16
    return example


def _qwen(vision):
    config = {
        "vision_config": {
            "depth": 2,
            "num_heads": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "initializer_range": 0.15,
            **vision,
        },
        "text_config": {
            **_TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        "image_token_id": IMAGE_TOKEN,
        "vision_start_token_id": 6,
    }
    grid = torch.tensor([[1, 4, 6], [1, 4, 6]])
    return config, 6, {"pixel_values": torch.randn(48, 3 * 2 * 14 * 14), "image_grid_thw": grid}


_PARTS = {
    "idefics3": _idefics3,
    "internvl": _internvl,
    "internvl_qwen3": _internvl_qwen3,
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
EXAMPLES = sorted(_PARTS)
"""By ``model_type``; SmolVLM has Idefics3's, and InternVL a second one with InternVL3.5's decoder."""
