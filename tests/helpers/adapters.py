"""A trained adapter without training: random LoRA weights, and what plain transformers makes of them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import LoraConfig, ModelConfig
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.loading import add_lora, load_base, load_processor
from rdmldg_ray.models.parity import PARITY_FILE


def write_adapter(folder: Path, base: Path, class_names: list[str], rows: list[dict]) -> None:
    """Write an adapter on every part of the base, and the parity file of rows (id, image, chain).

    The reference of the parity check is a plain forward pass: one sequence, the usual causal mask.
    """
    torch.manual_seed(0)
    parts = ["vision", "connector", "decoder"]
    model = add_lora(
        load_base(base, ModelConfig(dtype="float32")), family_of(base), LoraConfig(rank=4, parts=parts)
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.eval().save_pretrained(folder)
    prompts = PathwayPrompts(load_processor(base), class_names)
    known = [{**row, "logprobs": _logprobs(model, prompts, row)} for row in rows]
    pq.write_table(pa.Table.from_pylist(known), folder / PARITY_FILE)


@torch.no_grad()
def _logprobs(model, prompts: PathwayPrompts, row: dict) -> list[float]:
    encoded = prompts.encode([decode_image(row["id"], row["image"])])
    target = prompts.target_ids(row["chain"])
    ids = torch.tensor([encoded.prefixes[0] + prompts.reasoning_tail + target])
    inputs = dict(encoded.model_inputs)
    if "image_grid_thw" in inputs:  # without it, Qwen's positions are plain ones
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, -len(target) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(target)[:, None]).flatten().tolist()
