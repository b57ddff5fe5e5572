"""A base's weights with what was trained on it, one at a time: no merged model in memory or on disk.

Weights have the names of the base's own files, under which vLLM reads the base; what was trained has those of
transformers' modules. A ``Merge`` says which of the one belongs to which of the other.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from rdmldg_ray.models.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, trained_files

_OF_MODULE = "base_model.model."
# What an adapter has beyond its two matrices, or a scale of its own for some modules.
_NOT_PLAIN = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


class UnsupportedMergeError(ValueError):
    """Weights cannot be merged one by one; ``models.loading.load_merged`` can merge them."""


@dataclass(frozen=True)
class Merge:
    """How a base and what was trained on it make one model; plain values, so that any process takes it."""

    base: str
    """The base's folder."""
    trained: str | None
    """What ``models.loading.save_trained`` left; None for the base alone."""
    scale: float | None
    """Of an adapter's product, alpha over rank; None for trained weights."""
    changed: dict[str, str]
    """By a weight's name in the base's files: the adapter's module, or the name among the trained weights."""


def plan_merge(base: Path, trained: Path | None) -> Merge:
    """Find out which weights of a base are changed by what was trained.

    Raises:
        UnsupportedMergeError: for an adapter with more than two matrices to a module, for a base whose files
            have its weights in other pieces than transformers, and for trained weights that the base lacks.
        ValueError: for a folder that holds nothing that was trained.
    """
    if trained is None:
        return Merge(str(base), None, None, {})
    scale = None
    if (trained / ADAPTER_CONFIG).is_file():
        adapter = json.loads((trained / ADAPTER_CONFIG).read_text())
        extra = [name for name in _NOT_PLAIN if adapter.get(name)]
        if extra or adapter.get("bias", "none") != "none":
            raise UnsupportedMergeError(f"{trained}: an adapter with {', '.join(extra) or 'biases'}")
        scale = adapter["lora_alpha"] / adapter["r"]
        names = _names([trained / ADAPTER_WEIGHTS])
        modules = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
        wanted = {f"{module.removeprefix(_OF_MODULE)}.weight": module for module in modules}
    else:
        wanted = {name: name for name in _names(trained_files(trained))}
    changed = {
        name: wanted[in_model]
        for name, in_model in _names_in_model(base, _names(weight_files(base))).items()
        if in_model in wanted
    }
    if missing := set(wanted.values()) - set(changed.values()):
        raise UnsupportedMergeError(f"{base}: has no weight for {min(missing)}")
    return Merge(str(base), str(trained), scale, changed)


def merged_weights(
    merge: Merge, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the base's files by its name there, with what was trained in it.

    An adapter's product is added in float32, so that it is rounded once, where the weight is put.

    Args:
        dtype: what training computed in, to which the base's weights are rounded first.
        device: where to compute.
    """
    trained = _Tensors([] if merge.trained is None else _trained_weights(Path(merge.trained)), device)
    for file in weight_files(Path(merge.base)):
        with safe_open(file, "pt", device=str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping, though it has keys)
                weight = weights.get_tensor(name)
                if source := merge.changed.get(name):
                    if merge.scale is None:
                        weight = trained[source]
                    else:
                        b, a = (trained[f"{source}.lora_{part}.weight"].float() for part in "BA")
                        weight = weight.to(dtype).float().addmm_(b, a, alpha=merge.scale)
                yield name, weight


def weight_files(folder: Path) -> list[Path]:
    """A model folder's files of weights."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
    return [folder / "model.safetensors"]


def _trained_weights(trained: Path) -> list[Path]:
    adapter = trained / ADAPTER_WEIGHTS
    return [adapter] if adapter.is_file() else trained_files(trained)


def _names(files: Iterable[Path]) -> list[str]:
    names: list[str] = []
    for file in files:
        with safe_open(file, "pt") as weights:
            names += weights.keys()
    return names


def _names_in_model(base: Path, names: list[str]) -> dict[str, str]:
    """Names in a base's files to those of transformers' modules, as ``from_pretrained`` translates them."""
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    known = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    found = {}
    for name in names:
        in_model, in_pieces = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if in_model not in known and name in known:
            in_model, in_pieces = name, None
        if in_pieces:
            raise UnsupportedMergeError(f"{base}: transformers has {name} in other pieces")
        found[name] = in_model
    return found


class _Tensors:
    """Tensors of several files, by name, each read when it is asked for."""

    def __init__(self, files: list[Path], device: torch.device):
        opened = [safe_open(file, "pt", device=str(device)) for file in files]
        self._of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._of[name].get_tensor(name)
        return tensor
