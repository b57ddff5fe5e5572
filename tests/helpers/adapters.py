"""A trained adapter without training: random LoRA weights, and what plain transformers makes of them."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.loading import add_lora, load_base, load_processor
from rdmldg_ray.models.parity import PARITY_FILE, known_answers

WEIGHTS = "adapter_model.safetensors"


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Zeroes an adapter's weights of the modules with ``part`` in their name."""
    return lambda weights: {name: w * 0 if part in name else w for name, w in weights.items()}


def decoder_layers_permuted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each decoder layer gets the next one's adapter, as after a wrong renaming of modules."""
    layers = sorted({name.split("layers.")[1].split(".")[0] for name in weights if "text_model" in name})
    following = dict(zip(layers, layers[1:] + layers[:1], strict=True))

    def source(name: str) -> str:
        if "text_model" not in name:
            return name
        head, tail = name.split("layers.")
        layer, rest = tail.split(".", 1)
        return f"{head}layers.{following[layer]}.{rest}"

    return {name: weights[source(name)].clone() for name in weights}


def write_adapter(folder: Path, base: Path, class_names: list[str], samples: list[dict]) -> None:
    """Write an adapter on every part of the base, and the parity file of samples (id, image, label, chain).

    The reference of the parity check is a plain forward pass: one sequence, the usual causal mask.
    """
    torch.manual_seed(0)
    parts = ["vision", "connector", "decoder"]
    model = add_lora(
        load_base(base, ModelConfig(dtype="float32")), family_of(base), LoraConfig(rank=4, parts=parts)
    ).eval()
    prompts = PathwayPrompts(load_processor(base), class_names)
    known = known_answers(samples, class_names)
    score(model, prompts, known, "start_logprobs")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    score(model, prompts, known, "logprobs")
    score(model, prompts, known, "blank_logprobs", lambda image: Image.new("RGB", image.size, "gray"))
    pq.write_table(pa.Table.from_pylist(known), folder / PARITY_FILE)


def score(model, prompts: PathwayPrompts, known: list[dict], column: str, change=lambda image: image) -> None:
    """Add the log-probability of each token of each answer, for the image as it is or changed."""
    for row in known:
        image = change(decode_image(row["id"], row["image"]))
        row[column] = _logprobs(model, prompts, image, row["pathway"], row["target"])


@torch.no_grad()
def _logprobs(model, prompts: PathwayPrompts, image: Image.Image, pathway: str, target: str) -> list[float]:
    encoded = prompts.encode([image])
    tail = prompts.direct_tail if pathway == "direct" else prompts.reasoning_tail
    target_ids = prompts.target_ids(target)
    ids = torch.tensor([encoded.prefixes[0] + tail + target_ids])
    inputs = dict(encoded.model_inputs)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    if "image_grid_thw" in inputs:  # without it, Qwen's positions are plain ones
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, -len(target_ids) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(target_ids)[:, None]).flatten().tolist()
