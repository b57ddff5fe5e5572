"""``rdmldg calibrate``: the rates that ``run --dry-run --calibration`` estimates with."""

import platform
from pathlib import Path
from typing import Annotated

import typer

from rdmldg_ray.cli.base import Debug, Json, Storage, answering, app, console, mistakes_explained
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.estimate import calibrate
from rdmldg_ray.runs.results import read_run
from rdmldg_ray.storage import absolute


@app.command("calibrate")
def calibrate_command(
    run_name: Annotated[str, typer.Argument(help="Name of a finished run with a round of SARR.")],
    out: Annotated[Path, typer.Argument(help="File to write, for `run --dry-run --calibration`.")],
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure, from what a run took, the rates that estimates of other runs are made with."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root = absolute(storage or Config().storage)
        run = read_run(root, run_name)
        info = read_dataset_info(root, run.config.data.dataset)
        rates = {}
        for stage, steps in run.metrics().items():
            if steps[-1]["resumed_at"] == 0:  # else its rate is not that of the whole stage
                rates[stage] = steps[-1]["samples_per_s"] or 0.0
        sizes = {stage: run.stage_bytes(stage) for stage in run.state}
        machine = f"{platform.machine()}, {run.config.workers.num_workers} workers"
        found = calibrate(run.config, info, run.state, rates, sizes, machine)
        out.write_text(found.model_dump_json(indent=2) + "\n")
        console.print(f"{out}: the rates of run '{run_name}'", highlight=False, soft_wrap=True)
        answer(found.model_dump())
