"""A recipe to begin with: a shipped one's settings under another name, each with what it means."""

import json
import sys
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import yaml

from rdmldg_ray.config.load import load_config, recipe_tree
from rdmldg_ray.config.settings import sections

_WIDTH = 100


def starting_recipe(name: str, recipe: str, dataset: str | None = None, chains: str | None = None) -> str:
    """The text of a recipe of one's own, as YAML with a comment for each setting.

    Args:
        name: of its run.
        recipe: whose settings it begins with.
        dataset: its data set, of which each domain is held out in turn; by default the recipe's own.
        chains: the teacher whose chains it trains on; by default the recipe's own.

    Raises:
        ConfigError: when there is no such recipe, or it is not valid with these.
    """
    tree = {**recipe_tree(recipe), "name": name}
    data = dict(tree.get("data", {}))
    if dataset is not None:
        data |= {"dataset": dataset, "held_out": ["all"]}
    if chains is not None:
        data["chains"] = chains
    tree["data"] = data
    # Whoever gives a wrong name is told so now, and not when the recipe is run.
    load_config(recipe, [f"name={name}", *(f"data.{key}={json.dumps(value)}" for key, value in data.items())])
    meanings = {setting.path: setting.meaning for section in sections() for setting in section.settings}
    head = f"# Begun from the recipe '{recipe}'. `rdmldg settings` explains these settings and all others.\n"
    return head + "\n".join(_lines(tree, meanings, "")) + "\n"


def _lines(tree: dict[str, Any], meanings: dict[str, str], above: str) -> Iterator[str]:
    indent = "  " * above.count(".")
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and path not in meanings:
            yield f"{indent}{key}:"
            yield from _lines(value, meanings, f"{path}.")
        else:
            yield from (f"{indent}# {line}" for line in wrap(meanings[path], _WIDTH - len(indent)))
            yield f"{indent}{key}: {_plain(value)}"


def _plain(value: Any) -> str:
    """A value as YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("...\n").strip()
