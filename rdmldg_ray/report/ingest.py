"""What an ingest found, beside what the literature says of the data set."""

from collections.abc import Mapping, Sequence

from rich.table import Table


def ingest_table(
    title: str,
    counts: Mapping[str, int],
    rejected: Mapping[str | None, int],
    literature: Mapping[str, int],
    literature_total: int | None,
) -> Table:
    """Images and rejects in each environment, and in all; a dash where the literature has no number.

    Args:
        rejected: by environment; those under None are counted in the last row only.
    """
    table = Table(title=title)
    table.add_column("environment")
    for column in ("images", "rejected", "literature"):
        table.add_column(column, justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count), str(rejected.get(name, 0)), _number(literature.get(name)))
    total = (sum(counts.values()), sum(rejected.values()))
    table.add_section()
    table.add_row("all", *map(str, total), _number(literature_total))
    return table


def class_notes(num_classes: int, missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines on the classes, and on the environments that lack some."""
    notes = [f"{num_classes} classes"]
    notes += [
        f"note: {environment} has no image of {', '.join(names)}" for environment, names in missing.items()
    ]
    return notes


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
