"""What the settings of a recipe are, in words: for ``rdmldg settings``, the docs, and mistyped keys."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from rdmldg_ray.config.schema import Config

_SIGNS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_TYPES = {"string": "text", "integer": "integer", "number": "number", "object": "mapping"}

# What other trainers (transformers, peft, TRL, verl, LLaMA-Factory, ms-swift) call the same.
_ELSEWHERE = {
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "torch_dtype": "model.dtype",
    "dataset_name": "data.dataset",
    "deepspeed": "workers.zero_stage",
    "zero": "workers.zero_stage",
    "test_env": "data.held_out",
    "test_envs": "data.held_out",
    "target": "data.held_out",
    "target_domain": "data.held_out",
    "image_settings": "model.mm_processor_kwargs",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "r": "lora.rank",
    "target_modules": "lora.parts",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "warmup": "warmup_ratio",
    "warmup_steps": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "save_steps": "checkpoint_every",
    "max_seq_length": "model.max_length",
    "max_model_len": "model.max_length",
    "cutoff_len": "model.max_length",
    "model_name_or_path": "model.path",
    "num_generations": "sarr.max_attempts",
    "num_gpus": "workers.num_workers",
    "n_gpus_per_node": "workers.num_workers",
    "output_dir": "storage",
    "run_name": "name",
    "report_to": "tracking",
    "temperature": "sarr.temperatures",
    "teacher": "data.chains",
}


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe.

    Attributes:
        path: as an override has it, such as ``mtct.epochs``.
        values: which it may have, in words; what is to be typed is in backticks.
    """

    path: str
    values: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class SettingsSection:
    """A section of a recipe; ``path`` and ``meaning`` are empty for that of the whole."""

    path: str
    meaning: str
    settings: list[Setting]


@cache
def sections() -> list[SettingsSection]:
    """All sections, each before those below it."""
    schema = Config.model_json_schema()
    defaults = Config().model_dump(mode="json")
    return list(_sections(schema, schema["$defs"], defaults, "", ""))


def find_settings(key: str) -> list[SettingsSection]:
    """The setting of a path, or those of a section and below it; all for an empty key.

    Raises:
        ValueError: for a key that there is not, with the one that may be meant.
    """
    found = [
        SettingsSection(section.path, section.meaning, [s for s in section.settings if _below(s.path, key)])
        for section in sections()
    ]
    found = [section for section in found if section.settings]
    if not found:
        meant = called_elsewhere(key.split(".")[-1])
        remedy = f"did you mean {' or '.join(meant)}?" if meant else "`rdmldg settings` lists all"
        raise ValueError(f"no setting '{key}'; {remedy}")
    return found


def called_elsewhere(word: str) -> list[str]:
    """Paths of the settings that a word means: in another section, or to another trainer."""
    wanted = _ELSEWHERE.get(word, word)
    paths = [setting.path for section in sections() for setting in section.settings]
    return [path for path in paths if path == wanted or path.endswith(f".{wanted}")]


def _below(path: str, key: str) -> bool:
    return not key or path == key or path.startswith(f"{key}.")


def _sections(
    section: dict[str, Any], definitions: dict[str, Any], defaults: dict[str, Any], path: str, meaning: str
) -> Iterator[SettingsSection]:
    own, below = [], []
    for key, setting in section["properties"].items():
        if "$ref" in setting:
            below.append((key, definitions[setting["$ref"].removeprefix("#/$defs/")]))
        else:
            own.append(
                Setting(
                    path=f"{path}.{key}".lstrip("."),
                    values=_values(setting),
                    default=defaults[key],
                    meaning=setting["description"],
                )
            )
    yield SettingsSection(path, meaning, own)
    for key, inner in below:
        described = " ".join(inner["description"].split())
        yield from _sections(inner, definitions, defaults[key], f"{path}.{key}".lstrip("."), described)


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_values(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(as_code(value) for value in schema["enum"])
    kind = schema["type"]
    if kind == "null":
        return as_code(None)
    if kind == "boolean":
        return f"{as_code(True)}, {as_code(False)}"
    if kind == "array":
        return f"list of {_values(schema['items'])}"
    bounds = [sign.format(schema[key]) for key, sign in _SIGNS.items() if key in schema]
    return " ".join([_TYPES[kind], ", ".join(bounds)]).strip()


def as_code(value: Any) -> str:
    """A value as it is typed, in backticks."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
