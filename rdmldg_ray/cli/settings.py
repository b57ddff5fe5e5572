"""``rdmldg settings`` and ``rdmldg init``: what may be written into a recipe, and one to begin with."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from rdmldg_ray.cli.base import app, command, console, say
from rdmldg_ray.config.settings import as_code, find_settings
from rdmldg_ray.config.starting import starting_recipe


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


@command(app)
def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write, such as my.yaml.")],
    recipe: Annotated[str, typer.Option("--from", help="The recipe whose settings it begins with.")] = "demo",
    dataset: Annotated[
        str | None, typer.Option(help="Name of its data set; each domain is held out.")
    ] = None,
    chains: Annotated[str | None, typer.Option(help="The teacher whose chains it trains on.")] = None,
) -> Any:
    """Write a recipe of your own, with a comment for each setting."""
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{file}: a recipe's name ends in .yaml")
    text = starting_recipe(file.stem, recipe, dataset, chains)
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        raise ValueError(f"{file}: is there already; give another name, or delete it") from None
    say(f"{file} is written; check it with `rdmldg doctor {file}`, then `rdmldg run {file} --dry-run`")
    return {"file": str(file)}
