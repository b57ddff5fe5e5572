"""``rdmldg report``: runs as one page to look at."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import Runs, app, check_prices, command, console, say
from rdmldg_ray.runs.estimate import Prices


@command(app)
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    max_images: Annotated[
        int, typer.Option(min=0, help="Images of each run's gallery, a few kilobytes each.")
    ] = 120,
    prices: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="To tell the cost: US dollars for an hour of a worker or engine, and for a GB and month.",
            metavar="HOUR GB",
            callback=check_prices,
        ),
    ] = None,
    storage: str | None = None,
) -> Any:
    """Write one HTML file of runs, complete or not: results, curves, rejections, a gallery of chains."""
    paid = Prices(worker_hour=prices[0], gb_month=prices[1]) if prices else None
    with console.status("reading and drawing"):
        file = api.report(runs, out, max_images=max_images, prices=paid, storage=storage)
    size = file.stat().st_size
    say(f"{file} ({size / 2**20:.1f} MiB); opens in any browser")
    return {"file": str(file), "bytes": size}
