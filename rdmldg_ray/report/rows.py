"""Rows of results as a printed table and as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rdmldg_ray.report.tables import percent

Rows = Sequence[dict[str, Any]]


def rows_table(title: str, rows: Rows, shares: Sequence[str] = ()) -> Table:
    """Rows with the same keys as a table with a column for each key.

    Args:
        shares: columns shown in percent.
    """
    table = Table(title=title)
    for column in rows[0]:
        numbers = isinstance(rows[0][column], int | float) and not isinstance(rows[0][column], bool)
        heading = column.replace("_", " ")
        table.add_column(
            f"{heading}, %" if column in shares else heading, justify="right" if numbers else "left"
        )
    for row in rows:
        cells = [percent(value) if key in shares else _shown(value) for key, value in row.items()]
        table.add_row(*cells)
    return table


def rows_csv(rows: Rows) -> bytes:
    """Rows with the same keys as CSV with a header, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
