"""A sweep's trials as CSV and as a picture."""

from collections.abc import Sequence
from typing import Any

from rdmldg_ray.report.plots import parallel_coordinates
from rdmldg_ray.report.rows import rows_csv
from rdmldg_ray.storage import join, write_bytes
from rdmldg_ray.sweeps.space import coordinates

_SCORE = "validation, %"


def sweep_title(name: str, pathway: str) -> str:
    """What a table or picture of a sweep's trials is called."""
    return f"sweep '{name}': validation accuracy of the {pathway} pathway"


def write_sweep(folder: str, title: str, rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> None:
    """Write ``results.csv``, and ``results.png`` when a trial has a score.

    Args:
        rows: as ``sweeps.space.trial_row`` makes them.
        settings: dotted paths of the settings that vary.
    """
    write_bytes(join(folder, "results.csv"), rows_csv(rows))
    if lines := coordinates(rows, settings):
        picture = parallel_coordinates(title, [*settings, _SCORE], lines, _SCORE)
        write_bytes(join(folder, "results.png"), picture)
