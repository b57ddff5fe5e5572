"""``rdmldg settings``: what may be written into a recipe."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from rdmldg_ray.cli.base import app, command, console, say
from rdmldg_ray.config.settings import as_code, find_settings


@command(app)
def settings(
    key: Annotated[
        str, typer.Argument(help="A setting or a section, such as mtct.epochs or sarr; all without it.")
    ] = "",
) -> Any:
    """Explain the settings of a recipe: what each may be, its default, and what it does."""
    found = find_settings(key)
    for section in found:
        if section.meaning:
            say(f"{section.path}: {section.meaning}")
        table = Table(Column("setting", no_wrap=True), "values", "default", "meaning")
        for setting in section.settings:
            values, default = (text.replace("`", "") for text in (setting.values, as_code(setting.default)))
            table.add_row(setting.path, values, default, setting.meaning)
        console.print(table)
    return [asdict(setting) for section in found for setting in section.settings]
