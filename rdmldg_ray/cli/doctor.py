"""``rdmldg doctor``: whether this machine can do what a recipe asks."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from rdmldg_ray.cli.base import Debug, Json, Overrides, Storage, answering, app, console, mistakes_explained
from rdmldg_ray.cli.runs import resolve_config
from rdmldg_ray.runs.doctor import Finding, examine

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "red"}


@app.command()
def doctor(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or a path to a .yaml file.")
    ] = "demo",
    overrides: Overrides = None,
    base_url: Annotated[
        str | None, typer.Option(help="Of a teacher's endpoint; otherwise OPENAI_BASE_URL.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check Python, packages, GPU, memory, disk, Ray, storage, data, model and teacher for a recipe.

    Exit code 0 when nothing is wrong (there may be warnings), 1 otherwise.
    """
    with mistakes_explained(debug), answering(as_json) as answer:
        config = resolve_config(recipe, overrides, storage)
        findings = []
        for finding in examine(config, base_url):
            findings.append(finding)
            _print_finding(finding)
        answer([asdict(finding) for finding in findings])
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    line = Text.assemble(
        (f"{finding.status:<8}", _STYLES[finding.status]), f"{finding.check:<16}{finding.found}"
    )
    console.print(line, soft_wrap=True)
    if finding.status != "ok":
        console.print(Text(f"{'':<24}{finding.remedy}"), soft_wrap=True)
