"""Loading a base model for training, adding LoRA, and merging an adapter for serving."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from rdmldg_ray.config import LoraConfig, ModelConfig
from rdmldg_ray.models.families import Family


def load_processor(folder: Path) -> Any:
    """The processor (tokenizer, image processor, chat template) of a model folder."""
    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def load_base(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The base model in the configured dtype, on the CPU."""
    return AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=getattr(torch, config.dtype),
        attn_implementation=config.attention,
        local_files_only=True,
    )


def add_lora(model: PreTrainedModel, family: Family, config: LoraConfig) -> PeftModel:
    """Put new adapters on every linear layer of the configured parts; all else is frozen.

    The second matrix of an adapter starts at zero, so the model's outputs are unchanged.
    """
    targets = [name for part in config.parts for name in _linear_layers(model, family, part)]
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    adapted = get_peft_model(model, peft_config)
    assert isinstance(adapted, PeftModel)
    return adapted


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Continue training a saved adapter."""
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def save_merged(base: Path, adapter: Path, config: ModelConfig, target: Path) -> None:
    """Write base plus adapter as a plain model folder that transformers and vLLM load."""
    merged = load_adapter(load_base(base, config), adapter).merge_and_unload()
    merged.save_pretrained(target)
    load_processor(base).save_pretrained(target)


def _linear_layers(model: nn.Module, family: Family, part: str) -> list[str]:
    prefix = family.prefix(part) + "."
    names = [n for n, m in model.named_modules() if n.startswith(prefix) and isinstance(m, nn.Linear)]
    assert names, f"{family.name}: no linear layer below {prefix}"
    return names
