"""``rdmldg list``: what there is to name in a command."""

from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from rdmldg_ray import api
from rdmldg_ray.cli.base import app, command, console
from rdmldg_ray.config.load import recipe_meanings


@command(app, "list")
def list_(
    what: Annotated[Literal["runs", "datasets", "recipes"], typer.Argument()] = "runs",
    storage: str | None = None,
) -> Any:
    """List the runs or data sets of a storage, or the shipped recipes."""
    if what == "recipes":
        rows = [{"name": name, "meaning": meaning} for name, meaning in recipe_meanings().items()]
        columns = ["meaning"]
    elif what == "runs":
        rows = api.list_runs(storage=storage)
        columns = ["dataset", "model", "held_out", "complete", "stages"]
    else:
        rows = api.list_datasets(storage=storage)
        columns = ["samples", "classes", "domains", "chains", "stored"]
    table = Table("name", *(column.replace("_", " ") for column in columns))
    for row in rows:
        # Of what cannot be read only that is known.
        cells = [_told(row[column]) for column in columns] if "damage" not in row else [row["damage"]]
        table.add_row(row["name"], *cells)
    console.print(table)
    return rows


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
