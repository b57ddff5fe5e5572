"""``rdmldg report``: runs as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from rdmldg_ray.cli.base import Debug, Storage, app, console, mistakes_explained
from rdmldg_ray.config.schema import Config
from rdmldg_ray.storage import absolute


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Names of runs; several are shown side by side.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    max_images: Annotated[
        int, typer.Option(min=0, help="Images of each run's gallery, a few kilobytes each.")
    ] = 120,
    prices: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="To tell the cost: US dollars for an hour of a worker or engine, and for a GB and month.",
            metavar="HOUR GB",
        ),
    ] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file of runs, complete or not: results, curves, rejections, a gallery of chains."""
    with mistakes_explained(debug):
        from rdmldg_ray.report.page import render_report
        from rdmldg_ray.runs.estimate import Prices
        from rdmldg_ray.runs.results import read_run

        if not out.absolute().parent.is_dir():
            raise ValueError(f"{out}: no such folder; give --out in a folder that is there")
        root = absolute(storage or Config().storage)
        with console.status("reading and drawing"):
            found = [read_run(root, name) for name in dict.fromkeys(runs)]
            paid = Prices(worker_hour=prices[0], gb_month=prices[1]) if prices else None
            page = render_report(found, max_images, paid)
        out.write_text(page, encoding="utf-8")
        size = out.stat().st_size / 2**20
        console.print(
            f"{out.absolute()} ({size:.1f} MiB); opens in any browser", highlight=False, soft_wrap=True
        )
