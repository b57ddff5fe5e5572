"""What differs between model families, one entry each.

A family is recognised by ``model_type`` in the model's ``config.json``.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Where the parts of a family live, as prefixes of module names in transformers."""

    name: str
    vision: str
    connector: str
    decoder: str
    deepstack: str | None = None
    """More connectors, from inner layers of the vision encoder to the decoder's first layers."""
    positions: Literal["sequence", "mrope"] = "sequence"
    """One position for each token, or three (time, height, width), as multimodal RoPE has them."""
    published: tuple[tuple[str, str], ...] = ()
    """Prefixes of weights as transformers 5 saves them, and as published checkpoints and vLLM have them."""

    def prefixes(self, part: str) -> tuple[str, ...]:
        """How the names of modules in ``vision``, ``connector`` or ``decoder`` begin, with the dot."""
        modules = [getattr(self, part)]
        if part == "connector" and self.deepstack:
            modules.append(self.deepstack)
        return tuple(f"{module}." for module in modules)


_IDEFICS3 = Family(
    name="Idefics3 / SmolVLM",
    vision="model.vision_model",
    connector="model.connector",
    decoder="model.text_model",
)
_QWEN2_VL = Family(
    name="Qwen2-VL",
    vision="model.visual.blocks",
    connector="model.visual.merger",
    decoder="model.language_model",
    positions="mrope",
)

FAMILIES = {
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "internvl": Family(
        name="InternVL 2.5 / 3 / 3.5 (-hf checkpoints)",
        vision="model.vision_tower",
        connector="model.multi_modal_projector",
        decoder="model.language_model",
    ),
    "llava": Family(
        name="LLaVA-1.5",
        vision="model.vision_tower",
        connector="model.multi_modal_projector",
        decoder="model.language_model",
        published=(("vision_tower.", "vision_tower.vision_model."),),
    ),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": replace(_QWEN2_VL, name="Qwen2.5-VL"),
    "qwen3_vl": replace(_QWEN2_VL, name="Qwen3-VL", deepstack="model.visual.deepstack_merger_list"),
}


def family_of(model_folder: Path) -> Family:
    """The family of a model folder.

    Raises:
        ValueError: for a model type that is not in ``FAMILIES``; the message lists those that are.
    """
    model_type = json.loads((model_folder / "config.json").read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{model_folder}: model type '{model_type}' is not supported; "
            f"these are: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
