"""``rdmldg doctor``: whether this machine can do what a recipe asks."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from rdmldg_ray import api
from rdmldg_ray.cli.base import Ended, Overrides, Recipe, app, command, console, read_recipe
from rdmldg_ray.runs.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "red"}


@command(app)
def doctor(
    recipe: Recipe = "demo",
    overrides: Overrides = None,
    base_url: Annotated[
        str | None, typer.Option(help="Of a teacher's endpoint; otherwise OPENAI_BASE_URL.")
    ] = None,
    storage: str | None = None,
) -> Any:
    """Check Python, packages, GPU, memory, disk, Ray, storage, data, model and teacher for a recipe.

    Exit code 0 when nothing is wrong (there may be warnings), 1 otherwise.
    """
    findings = []
    for finding in api.doctor(read_recipe(recipe, overrides, storage), base_url=base_url):
        findings.append(finding)
        _print_finding(finding)
    document = [asdict(finding) for finding in findings]
    if any(finding.status == "wrong" for finding in findings):
        raise Ended(1, document)
    return document


def _print_finding(finding: Finding) -> None:
    line = Text.assemble(
        (f"{finding.status:<8}", _STYLES[finding.status]), f"{finding.check:<16}{finding.found}"
    )
    console.print(line, soft_wrap=True)
    if finding.status != "ok":
        console.print(Text(f"{'':<24}{finding.remedy}"), soft_wrap=True)
