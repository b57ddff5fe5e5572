"""Why the filter rejected the candidates of a round, as tables."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from rdmldg_ray.report.tables import percent, share_accepted
from rdmldg_ray.runs.store import RunStore, Stage, State, stages_of
from rdmldg_ray.storage import read_table

_MAX_ROWS = 20


def rejection_rows(rejections: pa.Table, by: str) -> list[dict[str, Any]]:
    """For each domain or class the candidates, the share accepted and how many each reason rejected.

    Those with the smallest share of accepted candidates come first, the commonest reasons too.

    Args:
        rejections: in ``sarr.selection.REJECTION_SCHEMA``.
        by: ``domain`` or ``label``.
    """
    counts: dict[str, dict[str | None, int]] = defaultdict(lambda: defaultdict(int))
    totals: dict[str | None, int] = defaultdict(int)
    for row in rejections.to_pylist():
        counts[row[by]][row["reason"]] += row["candidates"]
        totals[row["reason"]] += row["candidates"]
    reasons = sorted((r for r in totals if r is not None), key=lambda r: -totals[r])
    rows = [
        {
            "class" if by == "label" else by: name,
            "candidates": sum(found.values()),
            "accepted": found[None] / sum(found.values()),
        }
        | {reason: found[reason] for reason in reasons}
        for name, found in sorted(counts.items())
    ]
    return sorted(rows, key=lambda row: row["accepted"])


def rejection_table(rejections: pa.Table, by: str, title: str) -> Table:
    """``rejection_rows`` for the terminal, the first of them."""
    rows = rejection_rows(rejections, by)
    if not rows:
        return Table("none were drawn", title=title)
    table = Table(title=title)
    name, candidates, accepted, *reasons = rows[0]
    table.add_column(name, no_wrap=True)
    for column in ("drawn", f"{accepted}, %", *(reason.replace("_", " ") for reason in reasons)):
        table.add_column(column, justify="right")
    for row in rows[:_MAX_ROWS]:
        numbers = [str(row[reason]) if row[reason] else "" for reason in reasons]
        table.add_row(row[name], str(row[candidates]), percent(row[accepted]), *numbers)
    if len(rows) > _MAX_ROWS:
        table.caption = f"and {len(rows) - _MAX_ROWS} more, with a larger share accepted"
    return table


def round_printer(console: Console, store: RunStore) -> Callable[[Stage, State], None]:
    """What prints a round when its candidates are complete, for ``runs.run.Run``."""

    def print_when_drawn(stage: Stage, state: State) -> None:
        if stage.kind == "generate":
            print_round(console, store, stage, state)

    return print_when_drawn


def print_round(console: Console, store: RunStore, stage: Stage, state: State) -> None:
    """What the filter made of a round: its tables by domain and by class, and two lines.

    Args:
        stage: the drawing of the round's candidates.
        state: of the fold, with that stage.
    """
    rejections = read_table(store.rejections_uri(stage.held_out, stage.model))
    for by in ("domain", "label"):
        console.print(rejection_table(rejections, by, f"candidates by {'class' if by == 'label' else by}"))
    console.print(f"  {round_line(state[stage.name])}")
    console.print(f"  {shares_line(state, stage.held_out)}")


def round_line(summary: Mapping[str, Any]) -> str:
    """What a round of generation came to, in a line."""
    price = (
        ""
        if summary["tokens_per_selected"] is None
        else f", {summary['tokens_per_selected']:g} tokens for each"
    )
    rest = f"; {summary['draws_left']} images without one have draws left" if summary["draws_left"] else ""
    return (
        f"{summary['images_with_chain']} of {summary['images']} images have a chain{price}; "
        f"{summary['accepted']} of {summary['candidates']} candidates pass the filter{rest}"
    )


def shares_line(state: State, held_out: str) -> str:
    """The share of candidates that passed the filter, round by round."""
    shares = [
        f"{stage.round}: {percent(share_accepted(state, held_out, stage.model))} %"
        for stage in stages_of(state, "generate", held_out)
    ]
    return "share accepted by round, " + ", ".join(shares)
