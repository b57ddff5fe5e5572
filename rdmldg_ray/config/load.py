"""How a run's config is read from recipes and overrides.

Imports neither torch nor ray, so that ``--help``, ``--dry-run`` and a test of every recipe are
instant. A recipe is a YAML file with any part of the tree of ``config.schema``; what it leaves out has the
default there.

Why not OmegaConf for the overrides? They are the twenty lines of ``_apply_override``; types, ranges and "did
you mean" would be pydantic's all the same, and with interpolation a recipe would no longer say what it sets.
"""

import difflib
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rdmldg_ray.config.parse import read_yaml, read_yaml_texts
from rdmldg_ray.config.schema import RECORDED, Config
from rdmldg_ray.config.settings import called_elsewhere

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


def recipe_meanings() -> dict[str, str]:
    """What each shipped recipe is for, by its name: the first paragraph of its comment."""
    return {name: _first_paragraph((RECIPES / f"{name}.yaml").read_text()) for name in recipe_names()}


def _first_paragraph(text: str) -> str:
    return " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), text.splitlines()))


def load_config(recipe: str, overrides: list[str] | None = None) -> Config:
    """Read a recipe, by its shipped name or as a path to a YAML file, with ``key.path=value`` overrides.

    Raises:
        ConfigError: for a missing recipe, an unknown key, a wrong type, a value out of range or two
            settings that contradict each other; one line for each mistake, with the key's path.
    """
    return _resolve(recipe_tree(recipe), overrides or [], f"recipe '{recipe}'")


def override_config(config: Config, overrides: list[str]) -> Config:
    """A config with ``key.path=value`` overrides; raises as ``load_config`` does."""
    return _resolve(config.model_dump(mode="json"), overrides, f"config of run '{config.name}'")


def dump_config(config: Config) -> str:
    """The resolved config as YAML; ``load_config`` of it gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_config(text: str) -> Config:
    """A resolved config that ``dump_config`` wrote, in this or an earlier release."""
    return Config.model_validate(parse_tree(text), context=RECORDED)


def parse_tree(text: str) -> dict[str, Any]:
    """The settings in a config that ``dump_config`` wrote, by the names that they have now."""
    tree = _read_settings(text, "config.yaml")
    if not tree:
        raise ConfigError("config.yaml: holds no settings")
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


def recipe_tree(recipe: str) -> dict[str, Any]:
    """The settings that a recipe's file has, by section; what it leaves out has its default.

    Raises:
        ConfigError: when there is no such recipe, or its file is no mapping.
    """
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no recipe '{recipe}'{_nearest(recipe, recipe_names())}; or give a path to a .yaml file"
        )
    return _read_settings(path.read_bytes(), str(path))


def _read_settings(data: str | bytes, source: str) -> dict[str, Any]:
    try:
        tree, texts = read_yaml(data, source), read_yaml_texts(data, source)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of settings, not a {type(tree).__name__}")
    _keep_texts(tree, texts, [])
    return tree


def _keep_texts(tree: dict[str, Any], texts: dict[str, Any], above: list[str]) -> None:
    """Put back what is written where a setting is a text: the domains ``010`` and ``1.10`` are no numbers."""
    for key, value in tree.items():
        if isinstance(value, dict):
            _keep_texts(value, texts[key], [*above, key])
        elif value is not None and _is_text([*above, key]):
            tree[key] = texts[key]


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.split(".")
    if not separator or not all(path):
        raise ConfigError(f"override '{override}' is not of the form key.path=value, such as sarr.rounds=2")
    if not _is_utf8(override):
        raise ConfigError(f"override {override!a} has bytes that are not UTF-8")
    try:
        value = (read_yaml_texts if _is_text(path) else read_yaml)(text, f"override '{override}'")
    except ValueError as error:
        if "given twice" in str(error):
            raise ConfigError(str(error)) from None
        value = text
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
    tree[leaf] = value


def _is_utf8(text: str) -> bool:
    """Whether a text can be written: what a shell passes on may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    path = ".".join(location) or "(whole recipe)"
    if item["type"] == "extra_forbidden":
        if path in _RENAMED:
            return f"  {path}: is called {_RENAMED[path]} now"
        return f"  {path}: unknown key{_meant(location)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"  {path}: {message}"
    return f"  {path}: {message} (given: {item['input']!r})"


def _is_text(path: list[str]) -> bool:
    """Whether the setting at a path is a text, or a list of them."""
    section: Any = Config
    for part in path[:-1]:
        section = _section(section, part)
    field = section.model_fields.get(path[-1]) if section else None
    return field is not None and field.annotation in (str, str | None, list[str])


def _section(above: Any, name: str) -> Any:
    """The section of a name below another, or None."""
    field = above.model_fields.get(name) if above else None
    parts = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((part for part in parts if hasattr(part, "model_fields")), None)


def _keys_beside(location: list[str]) -> list[str]:
    section: Any = Config
    for part in location[:-1]:
        section = _section(section, part)
    return list(section.model_fields)


def _meant(location: list[str]) -> str:
    beside, meant = _keys_beside(location), called_elsewhere(location[-1])
    near = [key for key in beside if ".".join([*location[:-1], key]) in meant]
    if near or not meant:
        return _nearest(near[0] if near else location[-1], beside)
    return f"; did you mean {' or '.join(repr(path) for path in meant)}?"


def _nearest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(names)}"
