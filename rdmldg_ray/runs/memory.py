"""Whether a training and an engine fit on a GPU, from the config and the model's ``config.json`` alone.

Weights, gradients and the optimizer's state are counted, from the model without its weights. Activations are
what autograd keeps between the forward and the backward pass of one micro-batch with the longest chains that
may be written: those of a transformer layer are the same few tensors in every family. The test of this module
compares them with what autograd does keep. On a GPU (``benchmarks/bench_mtct_gpu.py``, an H200) the peak of a
step of InternVL3-8B's shape was within 3% of what is said here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdmldg_ray.config.schema import Config, TrainingConfig
from rdmldg_ray.models.families import FAMILIES, Family
from rdmldg_ray.models.folder import TINY_BASE, looks_local
from rdmldg_ray.storage import absolute

GIB = 2**30
GPUS = {"24 GB": 22.0, "48 GB": 44.5, "80 GB": 79.1, "141 GB": 139.8}
"""Kinds of GPUs, with the GiB that PyTorch finds on them."""
# Of CUDA's context, NCCL and cuBLAS, and the share that the allocator cannot use for gaps.
CONTEXT = 2 * GIB
_GAPS = 0.05
# DeepSpeed's buffer for the reduction of gradients, in elements, however few there are:
# https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/zero/stage_1_and_2.py#L3266-L3268
_BUCKET = 500_000_000
# ZeRO 3 holds so many parameters of others at most (stage3_max_live_parameters).
_LIVE = 1_000_000_000
# A prompt's text, with the names of some 65 classes.
_PROMPT_TOKENS = 256
_LABEL_TOKENS = 16
# Logits that there are at once, and what is made of them (``mtct.output_layer``).
LOSS = 12 * 2**26
# Tiles of an image, at most, where the processor cuts it up: its own number and the whole image.
_TILES = {"internvl": 13, "idefics3": 17, "smolvlm": 17}
_UNCUT = {"internvl": "crop_to_patches", "idefics3": "do_image_splitting", "smolvlm": "do_image_splitting"}
# Qwen's processor: at most so many tokens of an image.
_QWEN_TOKENS = 16384


@dataclass(frozen=True)
class Layers:
    """The layers of one part of a model, as far as they decide what autograd keeps."""

    number: int
    hidden: int
    inner: int
    """Width of the MLP."""
    queries: int
    """Width of all query heads together; keys and values are repeated to as many."""
    inner_kept: int
    """How many values of the MLP's width its activation keeps: 3 with a gate, 2 of the quick GELU, else 1."""
    rms: bool
    """Whether its norms are RMS norms, which are computed, and kept, in float32."""
    head_norms: int = 0
    """Width of queries and keys together, where their heads have RMS norms."""
    fused: bool = False
    """Whether one matrix makes queries, keys and values, which is then kept for the values' sake."""

    def kept(self, size: int, trained: bool, rank: int | None) -> int:
        """Bytes of one token in one layer.

        Args:
            size: of a value, in bytes.
            trained: whether the layer's weights or adapters are, or only layers before it.
            rank: of its adapters; None for full fine-tuning.
        """
        kept = 2 * self.hidden * (4 if self.rms else size) + self.head_norms * 4
        kept += size * 4 * self.queries  # queries, keys, values, and what attention makes of them
        kept += size * 3 * self.queries * self.fused
        kept += size * self.inner * self.inner_kept
        if trained:
            kept += size * (2 * self.hidden + self.inner)  # inputs of linear layers that are not there yet
            if rank is None:
                kept += size * 2 * self.hidden * self.rms  # normed values, before the norms' weights
            else:
                kept += size * rank * 7
        return kept


@dataclass(frozen=True)
class Shape:
    """A model, as far as memory depends on it."""

    parameters: int
    trained: int
    """Parameters that are trained: adapters, or weights."""
    decoder: Layers
    vision: Layers
    vocabulary: int
    cached: int
    """Values that the KV cache has of one token."""
    image_tokens: int
    """Of an image in the prompt, at most."""
    patches: int
    """Of an image in the vision encoder, at most."""
    mergers: int
    """Qwen's connectors, each of which keeps a vector of the vision encoder's width of each patch."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one worker's GPU in one stage of training."""

    micro_batch_size: int
    tokens: int
    """Length of the longest sequence."""
    weights: int
    gradients: int
    """With DeepSpeed's buffer for their reduction."""
    optimizer: int
    per_image: int
    """What an image of a micro-batch adds: activations, and what the backward pass needs of a layer."""

    def total(self, micro_batch_size: int | None = None) -> int:
        """All of it, for so many images at once, or as many as are asked for."""
        images = self.micro_batch_size if micro_batch_size is None else micro_batch_size
        fixed = self.weights + self.gradients + self.optimizer + LOSS + CONTEXT
        return fixed + images * self.per_image

    def largest_micro_batch(self, gpu: float) -> int:
        """How many images at once fit on a GPU of so many bytes; 0 for none."""
        return max(0, int((gpu * (1 - _GAPS) - self.total(0)) // self.per_image))


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one GPU of an engine."""

    weights: int
    per_answer: int
    """KV cache of a prompt and answer of ``model.max_length`` tokens."""
    share: float
    """Of the GPU that vLLM may use."""

    def answers(self, gpu: float) -> int:
        """How many of the longest answers are written at once on a GPU of so many bytes; 0 for none."""
        return max(0, int((gpu * self.share - CONTEXT - self.weights) // self.per_answer))


@dataclass(frozen=True)
class RunMemory:
    """What a run needs on its GPUs."""

    trainings: dict[str, TrainingMemory]
    """By the section of the config."""
    engine: EngineMemory

    def lines(self) -> list[str]:
        """The same as text, with the largest micro-batch for each kind of GPU."""
        lines = []
        for section, memory in self.trainings.items():
            parts = [
                f"{_gib(getattr(memory, part))} {part}" for part in ("weights", "gradients", "optimizer")
            ]
            fits = ", ".join(f"{kind}: {memory.largest_micro_batch(gib * GIB)}" for kind, gib in GPUS.items())
            lines.append(
                f"{section}: about {_gib(memory.total())} GiB on a worker's GPU, {', '.join(parts)}, and "
                f"{_gib(memory.per_image)} for each of {memory.micro_batch_size} images of up to "
                f"{memory.tokens} tokens; largest micro_batch_size that fits: {fits}"
            )
        fits = ", ".join(f"{kind}: {self.engine.answers(gib * GIB)}" for kind, gib in GPUS.items())
        lines.append(
            f"engines: {_gib(self.engine.weights)} GiB of weights on each GPU; longest answers at once in "
            f"what is left of {self.engine.share:g} of it: {fits}"
        )
        return lines

    def misfits(self, gpu: float) -> list[str]:
        """What does not fit on a GPU of so many bytes, with the remedy."""
        found = []
        for section, memory in self.trainings.items():
            largest = memory.largest_micro_batch(gpu)
            if largest < memory.micro_batch_size:
                remedy = f"set {section}.micro_batch_size={largest}" if largest else "take a larger GPU"
                found.append(f"{section} needs about {_gib(memory.total())} GiB: {remedy}")
        if not self.engine.answers(gpu):
            remedy = "raise engines.gpu_memory_utilization or gpus_per_engine, or lower model.max_length"
            found.append(f"an engine has no room for an answer: {remedy}")
        return found


def run_memory(config: Config, download: bool = False) -> RunMemory | None:
    """What a config's run needs on its GPUs; None without GPUs, and where ``config.json`` is not to be had.

    Args:
        download: whether ``config.json`` may be downloaded.

    Raises:
        ValueError: for a model type that is not supported.
    """
    described = read_model_config(config.model.path, download) if config.workers.gpus_per_worker else None
    if described is None:
        return None
    shape = model_shape(config, described)
    stages = {"mtct": config.mtct} | ({"sarr.training": config.sarr.training} if config.sarr.rounds else {})
    trainings = {section: training_memory(config, shape, stage) for section, stage in stages.items()}
    return RunMemory(trainings, engine_memory(config, shape))


def read_model_config(path: str, download: bool) -> dict[str, Any] | None:
    """A model's ``config.json``; None where it is not here, and not to be downloaded or not to be had.

    Args:
        path: the setting ``model.path``.
    """
    if path == "tiny" or looks_local(path):
        file: Any = (TINY_BASE if path == "tiny" else Path(absolute(path))) / "config.json"
    else:
        from huggingface_hub import hf_hub_download

        try:
            file = hf_hub_download(path, "config.json", local_files_only=not download)
        except (OSError, ValueError):
            return None
    return dict(json.loads(Path(file).read_text())) if Path(file).is_file() else None


def model_shape(config: Config, described: dict[str, Any]) -> Shape:
    """What memory depends on, of the model that a ``config.json`` describes.

    Raises:
        ValueError: for a model type that is not supported.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind = described.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model type '{kind}' is not supported; these are: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    settings = {key: value for key, value in described.items() if key not in ("model_type", "dtype")}
    whole = AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(whole)

    def count(prefixes: tuple[str, ...]) -> int:
        within = [module for name, module in model.named_modules() if name.startswith(prefixes)]
        linear = [module for module in within if isinstance(module, nn.Linear)]
        if config.lora.enabled:
            return sum(config.lora.rank * (one.in_features + one.out_features) for one in linear)
        return sum(weight.numel() for name, weight in model.named_parameters() if name.startswith(prefixes))

    trained = sum(count(family.prefixes(part)) for part in config.lora.parts)
    if not config.lora.enabled and "decoder" in config.lora.parts and not whole.tie_word_embeddings:
        trained += model.get_output_embeddings().weight.numel()
    text = whole.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    normed = any(name.endswith("self_attn.q_norm") for name, _ in model.named_modules())
    tokens, patches = _image(kind, whole, config.model.mm_processor_kwargs)
    mrope = family.positions == "mrope"
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=trained,
        decoder=Layers(
            number=text.num_hidden_layers,
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            queries=head * text.num_attention_heads,
            inner_kept=3,
            rms=True,
            head_norms=(head * text.num_attention_heads + keys) * normed,
        ),
        vision=_vision_layers(family, whole.vision_config),
        vocabulary=text.vocab_size,
        cached=2 * keys * text.num_hidden_layers,
        image_tokens=tokens,
        patches=patches,
        mergers=1 + len(getattr(whole.vision_config, "deepstack_visual_indexes", ())) if mrope else 0,
    )


def training_memory(config: Config, shape: Shape, training: TrainingConfig) -> TrainingMemory:
    """What a worker's GPU has to hold in a stage of training."""
    workers = config.workers
    shared = workers.num_workers
    size = 4 if config.model.dtype == "float32" else 2
    stage = workers.zero_stage
    own = shape.parameters + (shape.trained if config.lora.enabled else 0)
    weights = size * own
    if stage == 3:
        weights = weights // shared + min(weights, size * _LIVE)
    gradients = size * shape.trained // (shared if stage >= 2 else 1)
    gradients += size * _BUCKET if stage in (1, 2) else 0
    # Adam's two moments, and a copy of the weights in float32 that DeepSpeed makes wherever it shards.
    optimizer = 12 * shape.trained // shared if stage else 8 * shape.trained

    room = config.model.max_length - shape.image_tokens - _PROMPT_TOKENS
    answer = max(1, min(config.sarr.max_new_tokens, room))
    tokens = shape.image_tokens + _PROMPT_TOKENS + answer
    layers = [one for one, _ in _layer_tokens(config, shape, tokens)]
    # The backward pass needs gradients of a layer's activations, which are computed again where they are
    # checkpointed.
    once = 2 if workers.gradient_checkpointing else 1
    besides = max(once * one for one in layers)
    return TrainingMemory(
        micro_batch_size=training.micro_batch_size,
        tokens=tokens,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        per_image=kept_activations(config, shape, tokens) + besides,
    )


def kept_activations(config: Config, shape: Shape, tokens: int) -> int:
    """Bytes that autograd keeps of one image with a sequence of so many tokens."""
    size = _value_size(config)
    kept = 4 * shape.decoder.hidden * tokens + size * tokens * tokens  # the last norm, and the mask
    for one, layers in _layer_tokens(config, shape, tokens):
        checkpoint = size * layers.hidden * (tokens if layers is shape.decoder else shape.patches)
        kept += layers.number * (checkpoint if config.workers.gradient_checkpointing else one)
        if layers is shape.vision:
            kept += size * shape.mergers * shape.vision.hidden * shape.patches
    return kept


def _layer_tokens(config: Config, shape: Shape, tokens: int) -> list[tuple[int, Layers]]:
    """For each part that gradients go through what one of its layers keeps, in bytes, and its layers."""
    parts, rank = config.lora.parts, config.lora.rank if config.lora.enabled else None
    size = _value_size(config)
    found = [(tokens * shape.decoder.kept(size, "decoder" in parts, rank), shape.decoder)]
    if "vision" in parts:
        found.append((shape.patches * shape.vision.kept(size, True, rank), shape.vision))
    return found


def _value_size(config: Config) -> int:
    return 4 if config.model.dtype == "float32" and config.model.mixed_precision is False else 2


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def engine_memory(config: Config, shape: Shape) -> EngineMemory:
    """What each GPU of an engine has to hold."""
    size, parallel = (4 if config.engines.dtype == "float32" else 2), max(1, config.engines.gpus_per_engine)
    return EngineMemory(
        weights=size * shape.parameters // parallel,
        per_answer=size * shape.cached * config.model.max_length // parallel,
        share=config.engines.gpu_memory_utilization,
    )


def _vision_layers(family: Family, vision: Any) -> Layers:
    rotary = family.positions == "mrope"  # Qwen's encoder
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio)
    gated = vision.model_type in ("qwen2_5_vl", "qwen2_5_vl_vision")
    return Layers(
        number=vision.depth if rotary else vision.num_hidden_layers,
        hidden=hidden,
        inner=inner,
        queries=hidden,
        inner_kept=3 if gated else 2 if vision.hidden_act == "quick_gelu" else 1,
        rms=gated,
        fused=rotary,
    )


def _image(kind: str, whole: Any, settings: dict[str, Any]) -> tuple[int, int]:
    """Tokens of an image in the prompt, and patches of it in the vision encoder, at most."""
    vision = whole.vision_config
    if FAMILIES[kind].positions == "mrope":
        asked, of_token = settings.get("size") or {}, vision.spatial_merge_size**2
        pixels = asked.get("longest_edge") or settings.get("max_pixels")
        patches = pixels // vision.patch_size**2 if pixels else _QWEN_TOKENS * of_token
        return patches // of_token, patches
    side, patch = (n[0] if isinstance(n, list | tuple) else n for n in (vision.image_size, vision.patch_size))
    patches = (side // patch) ** 2
    uncut = kind not in _TILES or settings.get(_UNCUT[kind]) is False
    tiles = 1 if uncut else _TILES[kind]
    match kind:
        case "internvl":
            return tiles * whole.image_seq_length, tiles * (patches + 1)
        case "idefics3" | "smolvlm":
            return tiles * patches // whole.scale_factor**2, tiles * patches
        case _:
            return patches, patches + 1
