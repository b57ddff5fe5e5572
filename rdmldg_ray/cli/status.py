"""``rdmldg status``: how far a run is, here or elsewhere."""

import time
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rdmldg_ray import api
from rdmldg_ray.cli.base import Run, app, command, console
from rdmldg_ray.runs.status import QUIET_S, RunStatus, StageStatus

_STYLES = {"complete": "green", "running": "bold", "waiting": "dim"}
_LOOK_EVERY_S = 2.0


@command(app)
def status(
    run: Run,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds, until it is done.")
    ] = False,
    storage: str | None = None,
) -> Any:
    """Tell how far a run is, from its storage: stages, progress, the last metrics, time left."""
    found = api.status(run, storage=storage)
    if watch and console.is_terminal:
        with Live(_screen(found), console=console) as live:
            while not found.complete:
                time.sleep(_LOOK_EVERY_S)
                found = api.status(run, storage=storage)
                live.update(_screen(found))
    else:
        console.print(_screen(found))
    return asdict(found)


def _screen(found: RunStatus) -> Group:
    table = Table(title=f"run '{found.name}' at {found.location}")
    for column in ("stage", "", "progress"):
        table.add_column(column, overflow="fold")
    for stage in found.stages:
        table.add_row(stage.name, Text(stage.status, _STYLES[stage.status]), Text(_progress(stage)))
    lines = [Text(f"{s.name}: {s.text}") for s in found.stages if s.status == "running" and s.text]
    for fold, holder in found.holders.items():
        heard = f"{'expired, ' if holder.expired else ''}renewed {holder.renewed}"
        lines.append(Text(f"{fold}: {holder} works on it since {holder.taken} ({heard})"))
    left = "complete" if found.complete else f"time left: {_duration(found.eta_s)}"
    return Group(table, *lines, Text(left))


def _progress(stage: StageStatus) -> str:
    if stage.seconds is not None:
        return f"in {_duration(stage.seconds)}"
    if stage.status != "running":
        return ""
    quiet = stage.quiet_s is None or stage.quiet_s > QUIET_S
    silent = "" if not quiet else "; nothing heard of it lately: ended, or between two steps"
    return f"{stage.done}/{stage.total}, time left {_duration(stage.eta_s)}{silent}"


def _duration(seconds: float | None) -> str:
    return "not known yet" if seconds is None else str(timedelta(seconds=round(seconds)))
