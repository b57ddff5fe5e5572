"""What a family's decoder wants to know of the shared-prefix layout besides its tokens and mask."""

from typing import Any

import torch

from rdmldg_ray.models.families import Family
from rdmldg_ray.mtct.shared_prefix import Layout


def decoder_inputs(
    family: Family, model: Any, layout: Layout, model_inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Positions, and token types where the family has them.

    Args:
        model: the plain model of transformers, without peft's or DeepSpeed's wrapping.
        model_inputs: what the image processor made for the batch.
    """
    if family.positions == "sequence":
        return {"position_ids": layout.position_ids}
    types = (layout.input_ids == model.config.image_token_id).int()
    return {
        "position_ids": _mrope(model, layout, types, model_inputs["image_grid_thw"]),
        "mm_token_type_ids": types,
    }


def _mrope(model: Any, layout: Layout, types: torch.Tensor, image_grid: torch.Tensor) -> torch.Tensor:
    """(3, B, L): the model's own positions for the prefix, then text positions for each branch.

    In a sequence of its own, a branch would go on from the prefix's largest position plus one, equal
    in all three dimensions; so do both branches here.
    """
    in_prefix = layout.segments == 0
    lengths = in_prefix.sum(dim=1, keepdim=True)
    longest = int(lengths.max())
    prefix, _ = model.model.get_rope_index(
        layout.input_ids[:, :longest],
        mm_token_type_ids=types[:, :longest],
        image_grid_thw=image_grid,
        attention_mask=in_prefix[:, :longest].long(),
    )
    last = prefix.amax(dim=0).masked_fill(~in_prefix[:, :longest], 0).amax(dim=1, keepdim=True)
    positions = (layout.position_ids - lengths + last + 1).expand(3, -1, -1).clone()
    positions[:, :, :longest] = torch.where(in_prefix[:, :longest], prefix, positions[:, :, :longest])
    return positions.masked_fill(layout.segments < 0, 0)
