"""How a run's config is read from recipes and overrides.

Imports neither torch nor ray, so that ``--help``, ``--dry-run`` and a test of every recipe are
instant. A recipe is a YAML file with any part of the tree of ``config.schema``; what it leaves out has the
default there.

Why not OmegaConf for the overrides? They are the twenty lines of ``_apply_override``; types, ranges and "did
you mean" would be pydantic's all the same, and with interpolation a recipe would no longer say what it sets.
"""

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rdmldg_ray.config.schema import Config

RECIPES = Path(__file__).parent / "recipes"
SPACES = Path(__file__).parent / "spaces"

# Besides those of the engines.
_FREE_SETTINGS = (
    "storage",
    "model.max_length",
    "workers.cpus_per_worker",
    "workers.gradient_checkpointing",
    "workers.max_failures",
    "workers.scheduling_timeout_s",
    "tracking",
)


# What release 0.1.0 called settings, and their names now.
_RENAMED = {
    "model.image_settings": "mm_processor_kwargs",
    "mtct.schedule": "lr_scheduler",
    "sarr.training.schedule": "lr_scheduler",
}


class ConfigError(ValueError):
    """A recipe or an override is wrong; the message has one line for each mistake."""


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(recipe: str, overrides: list[str] | None = None) -> Config:
    """Read a recipe, by its shipped name or as a path to a YAML file, with ``key.path=value`` overrides.

    Raises:
        ConfigError: for a missing recipe, an unknown key, a wrong type, a value out of range or two
            settings that contradict each other; one line for each mistake, with the key's path.
    """
    return _resolve(_read_recipe(recipe), overrides or [], f"recipe '{recipe}'")


def override_config(config: Config, overrides: list[str]) -> Config:
    """A config with ``key.path=value`` overrides; raises as ``load_config`` does."""
    return _resolve(config.model_dump(mode="json"), overrides, f"config of run '{config.name}'")


def dump_config(config: Config) -> str:
    """The resolved config as YAML; ``load_config`` of it gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_config(text: str) -> Config:
    """A resolved config that ``dump_config`` wrote, in this or an earlier release."""
    return Config.model_validate(parse_tree(text))


def parse_tree(text: str) -> dict[str, Any]:
    """The settings in a config that ``dump_config`` wrote, by the names that they have now."""
    tree: dict[str, Any] = yaml.safe_load(text)
    for path, now in _RENAMED.items():
        *parents, before = path.split(".")
        section = tree
        for parent in parents:
            section = section.get(parent, {})
        if before in section:
            section[now] = section.pop(before)
    return tree


def changes_no_result(key: str) -> bool:
    """Whether a setting changes how a run goes but not what comes out."""
    return key in _FREE_SETTINGS or (key.startswith("engines.") and key != "engines.dtype")


def flatten_settings(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of settings as values by dotted path."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {
        k: v for key, child in tree.items() for k, v in flatten_settings(child, f"{prefix}{key}.").items()
    }


def _resolve(tree: dict[str, Any], overrides: list[str], source: str) -> Config:
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError("\n".join([f"{source} is not valid:", *lines])) from None


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no recipe '{recipe}'{_nearest(recipe, recipe_names())}; or give a path to a .yaml file"
        )
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, not a {type(tree).__name__}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' is not of the form key.path=value, such as sarr.rounds=2")
    # YAML 1.1 reads 1e-3 as a string; pydantic makes it a number where a number is due.
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
    tree[leaf] = value


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    path = ".".join(location) or "(whole recipe)"
    if item["type"] == "extra_forbidden":
        if path in _RENAMED:
            return f"  {path}: is called {_RENAMED[path]} now"
        return f"  {path}: unknown key{_nearest(location[-1], _keys_beside(location))}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"  {path}: {message}"
    return f"  {path}: {message} (given: {item['input']!r})"


def _keys_beside(location: list[str]) -> list[str]:
    section: Any = Config
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = next(a for a in (annotation, *get_args(annotation)) if hasattr(a, "model_fields"))
    return list(section.model_fields)


def _nearest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(names)}"
