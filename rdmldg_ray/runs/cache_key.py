"""Cache keys: what a stage's output depends on, and nothing else, as one hash.

Two stages with the same key give the same output, whatever runs they belong to. So trials of a
sweep that share a prefix of stages compute it once: those that differ only in SARR share MTCT, those
that differ only in the filter share the draws as well.

A key is made of all settings *but* those that are known not to matter to the stage: a setting
that somebody adds later then separates stages until it is entered here, and never shares wrongly.
What acts only through the stage's inputs comes in with their keys.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from rdmldg_ray.config.load import changes_no_result, flatten_settings
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.inputs import StageInputs
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.store import Kind, Stage

_ALWAYS = ("name", "storage", "data.held_out", "sarr.rounds", "evaluation")
"""Settings that no stage but an evaluation depends on: which folds and how many rounds are run does not
change what a stage of one fold and one round does."""

_AFTER_DRAWING = (
    "sarr.sampling",
    "sarr.max_attempts",
    "sarr.filter",
    "sarr.best_by",
    "sarr.without_chain",
    "sarr.training",
)
"""What decides which draws are made and what becomes of them, not what a draw is: a stricter trial goes
on drawing where a looser one ended. See ``sarr.candidate_cache``."""

_IRRELEVANT: dict[Kind, tuple[str, ...]] = {
    "mtct": (*_ALWAYS, "sarr", "engines"),
    "generate": (*_ALWAYS, *_AFTER_DRAWING),
    "train": _ALWAYS,
    "evaluate": (
        *(path for path in _ALWAYS if path != "evaluation"),
        "evaluation.zero_shot",
        "data.chains",
        "data.augment",
        "data.long_chains",
        "lora",
        "mtct",
        "sarr",
        "workers",
    ),
}


def stage_keys(
    config: Config, info: DatasetInfo, stages: list[Stage], read: StageInputs | None = None
) -> dict[str, str]:
    """The key of each stage of a plan, 64 hexadecimal digits by the stage's name.

    Args:
        stages: in order, as ``plan_stages`` makes them: inputs before what depends on them.
        read: what the stages read from outside of their run; without it the keys tell only which stages of
            a plan are the same.
    """
    settings = flatten_settings(config.model_dump(mode="json"))
    keys: dict[str, str] = {}
    for stage in stages:
        inputs = [keys[name] for name in _inputs(stage)]
        keys[stage.name] = _hash(
            {
                "read": read.of(stage) if read else {},
                "dataset": _identity(info),
                "fold": stage.held_out,
                "kind": stage.kind,
                "round": stage.round,
                "settings": relevant_settings(settings, stage.kind),
                "inputs": inputs,
            }
        )
    return keys


def count_shared(configs: Iterable[Config], info: DatasetInfo) -> dict[Kind, tuple[int, int]]:
    """For each kind of stage, how many a group's runs have in their plans, and how many keys."""
    found: dict[Kind, list[str]] = {}
    for config in configs:
        stages = plan_stages(config, info)
        keys = stage_keys(config, info, stages)
        for stage in stages:
            found.setdefault(stage.kind, []).append(keys[stage.name])
    return {kind: (len(keys), len(set(keys))) for kind, keys in found.items()}


def relevant_settings(settings: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Of settings by dotted path, those that the output of a kind of stage depends on."""
    return {
        path: value
        for path, value in settings.items()
        if not changes_no_result(path) and not any(_below(path, section) for section in _IRRELEVANT[kind])
    }


def _inputs(stage: Stage) -> list[str]:
    """The stages whose outputs a stage reads."""
    before = Stage(stage.held_out, "mtct" if stage.round <= 1 else "train", stage.round - 1)
    match stage.kind:
        case "mtct":
            return []
        case "generate":
            return [before.name]
        case "train":
            return [before.name, Stage(stage.held_out, "generate", stage.round).name]
        case "evaluate":
            model = Stage(stage.held_out, "mtct" if stage.round == 0 else "train", stage.round)
            return [] if stage.round < 0 else [model.name]


def _identity(info: DatasetInfo) -> dict[str, Any]:
    counts, sizes = dict(info.counts), dict(info.sizes)
    return {"name": info.name, "classes": list(info.classes), "counts": counts, "sizes": sizes}


def _below(path: str, section: str) -> bool:
    return path == section or path.startswith(f"{section}.")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
