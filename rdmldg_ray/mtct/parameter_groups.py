"""Which learning rate each trained parameter has."""

from typing import Any

from torch import nn

from rdmldg_ray.config.schema import TrainingConfig
from rdmldg_ray.models.families import Family
from rdmldg_ray.models.loading import plain_model

_PARTS = ("vision", "connector", "decoder")


def parameter_groups(model: nn.Module, family: Family, training: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters as groups of an optimizer, one for each learning rate, in the model's order.

    The output layer counts as the decoder's, as in ``models.loading.train_parts``.
    """
    prefixes = {part: family.prefixes(part) for part in _PARTS}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in plain_model(model).named_parameters():
        if parameter.requires_grad:
            part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), "decoder")
            groups.setdefault(training.rate_of(part), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
