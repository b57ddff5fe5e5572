"""Loading a base model for training, choosing what is trained, and what a training leaves.

It leaves a folder either way: an adapter in peft's own format, or, of a full fine-tuning, the weights
that were trained. Base and folder together are the model.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.models.families import FAMILIES, Family

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TRAINED_WEIGHTS = "trained{suffix}.safetensors"  # in shards when they are large


def load_processor(folder: Path) -> Any:
    """The processor (tokenizer, image processor, chat template) of a model folder."""
    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_base(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """The base model in the configured dtype, on the CPU.

    For attention 'flex' it has 'sdpa': what FlexAttention is for is the layout that training alone has; see
    ``mtct.flex``.
    """
    return AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=getattr(torch, config.dtype),
        attn_implementation="sdpa" if config.attention == "flex" else config.attention,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
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


def train_parts(model: PreTrainedModel, family: Family, config: LoraConfig) -> PreTrainedModel:
    """Full fine-tuning: the weights of the configured parts are trained, all else is frozen.

    The output layer counts as the decoder's, whose embeddings it shares in many models.
    """
    prefixes = tuple(prefix for part in config.parts for prefix in family.prefixes(part))
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(prefixes)
    if "decoder" in config.parts:
        model.get_output_embeddings().requires_grad_(True)
    return model


def make_trainable(model: PreTrainedModel, family: Family, config: LoraConfig) -> nn.Module:
    """What the configuration trains: new adapters, or weights of the model's own."""
    return add_lora(model, family, config) if config.enabled else train_parts(model, family, config)


def load_trained(model: PreTrainedModel, family: Family, config: LoraConfig, folder: Path) -> nn.Module:
    """Go on with what ``save_trained`` left, as ``make_trainable`` began."""
    if config.enabled:
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    return train_parts(_with_weights(model, folder), family, config)


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the adapter, or without one the trained weights; never what is frozen."""
    if isinstance(model, PeftModel):
        # Embeddings are not trained. Whether a vocabulary was resized would be asked of the model hub.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        return
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_torch_state_dict(trained, folder, filename_pattern=_TRAINED_WEIGHTS)


def leave_out_tied(model: nn.Module) -> None:
    """Leave frozen weights out of ``state_dict`` under a second name, as a tied output layer has one.

    DeepSpeed, told to leave frozen weights out of a checkpoint, knows each by its first name only, and would
    write such a layer into every one.
    https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/engine.py#L4012-L4015
    """
    first_names = {name for name, _ in model.named_parameters()}
    every_name = model.named_parameters(remove_duplicate=False)
    tied = [name for name, p in every_name if name not in first_names and not p.requires_grad]

    def forget(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name in tied:
            state.pop(prefix + name, None)

    model.register_state_dict_post_hook(forget)


def plain_model(model: Any) -> Any:
    """The model of transformers, without peft's wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_merged(base: Path, trained: Path, config: ModelConfig) -> PreTrainedModel:
    """Base and what ``save_trained`` left, as one plain model."""
    model = load_base(base, config)
    if (trained / ADAPTER_CONFIG).is_file():
        merged: PreTrainedModel = PeftModel.from_pretrained(model, trained).merge_and_unload()
        return merged
    return _with_weights(model, trained)


def save_merged(base: Path, trained: Path, config: ModelConfig, target: Path) -> None:
    """Write ``load_merged`` as a plain model folder that transformers and vLLM load."""
    save_published(load_merged(base, trained, config), target)
    load_processor(base).save_pretrained(target)


def save_published(model: PreTrainedModel, folder: Path) -> None:
    """Write a model under the names of published checkpoints, which transformers and vLLM both load."""
    model.save_pretrained(folder)
    rename_published(folder, FAMILIES[model.config.model_type])


def rename_published(folder: Path, family: Family) -> None:
    """Rename the weights that transformers has saved, as ``Family.published`` says.

    transformers 5.6 took a level out of the names of CLIP's modules, which vLLM still expects:
    https://github.com/huggingface/transformers/pull/44431
    """
    if not family.published:
        return

    def published(name: str) -> str:
        for saved, known in family.published:
            # A model that came from a published checkpoint is saved under its names.
            if name.startswith(saved) and not name.startswith(known):
                return known + name.removeprefix(saved)
        return name

    def renamed(weights: dict[str, Any]) -> dict[str, Any]:
        return {published(name): weight for name, weight in weights.items()}

    for file in folder.glob("*.safetensors"):
        save_file(renamed(load_file(file)), file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        index.write_text(json.dumps(content | {"weight_map": renamed(content["weight_map"])}))


def trained_files(folder: Path) -> list[Path]:
    """The weights that full fine-tuning left.

    Raises:
        ValueError: when there are none.
    """
    files = sorted(folder.glob(_TRAINED_WEIGHTS.format(suffix="*")))
    if not files:
        raise ValueError(f"{folder}: neither an adapter nor trained weights; give what a training left")
    return files


def _with_weights(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    for file in trained_files(folder):
        unknown = model.load_state_dict(load_file(file), strict=False).unexpected_keys
        if unknown:
            raise ValueError(
                f"{file}: the base model has no weight '{unknown[0]}'; set model.path to its own"
            )
    return model


def _linear_layers(model: nn.Module, family: Family, part: str) -> list[str]:
    prefixes = family.prefixes(part)
    names = [n for n, m in model.named_modules() if n.startswith(prefixes) and isinstance(m, nn.Linear)]
    assert names, f"{family.name}: no linear layer below {prefixes}"
    return names
