"""Renders the table of settings in the docs from the schema of a run's config.

    python -m tools.settings_table --write docs/recipes-and-settings.md

Without ``--write`` it prints the table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rdmldg_ray.config.schema import Config

BEGIN = "<!-- settings: written by tools/settings_table.py -->"
END = "<!-- end of settings -->"
_SIGNS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_TYPES = {"string": "text", "integer": "integer", "number": "number", "object": "mapping"}


def settings_table() -> str:
    """Every setting as Markdown: a table for the run itself, and one for each section."""
    schema = Config.model_json_schema()
    defaults = Config().model_dump(mode="json")
    return "\n".join(_section_lines(schema, schema["$defs"], defaults, ""))


def replace_table(text: str, table: str) -> str:
    """The text of a page with another table between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _section_lines(
    section: dict[str, Any], definitions: dict[str, Any], defaults: dict[str, Any], path: str
) -> list[str]:
    """The table of a section's own settings, and then those of the sections below it."""
    rows, below = [], []
    for key, setting in section["properties"].items():
        name = f"{path}{key}"
        if "$ref" in setting:
            inner = definitions[setting["$ref"].removeprefix("#/$defs/")]
            below += ["", f"### `{name}`", "", " ".join(inner["description"].split()), ""]
            below += _section_lines(inner, definitions, defaults[key], f"{name}.")
        else:
            meaning = setting["description"].replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| `{name}` | {_values(setting)} | {_code(defaults[key])} | {meaning} |")
    heading = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    return [*(heading if rows else []), *rows, *below]


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_values(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(_code(value) for value in schema["enum"])
    kind = schema["type"]
    if kind == "null":
        return _code(None)
    if kind == "boolean":
        return f"{_code(True)}, {_code(False)}"
    if kind == "array":
        return f"list of {_values(schema['items'])}"
    bounds = [sign.format(schema[key]) for key, sign in _SIGNS.items() if key in schema]
    return " ".join([_TYPES[kind], ", ".join(bounds)]).strip()


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Replace the table in this page.")
    page = parser.parse_args().write
    if page is None:
        print(settings_table())
    else:
        page.write_text(replace_table(page.read_text(), settings_table()))


if __name__ == "__main__":
    main()
