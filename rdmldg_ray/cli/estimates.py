"""``rdmldg calibrate``: the rates that ``run --dry-run --calibration`` estimates with."""

import json
import platform
from pathlib import Path
from typing import Annotated

import typer

from rdmldg_ray.cli.base import Debug, Storage, absolute, app, console, mistakes_explained
from rdmldg_ray.config import Config, parse_config
from rdmldg_ray.domainbed.samples import read_dataset_info
from rdmldg_ray.estimate import calibrate
from rdmldg_ray.plan import plan_stages
from rdmldg_ray.storage import exists, join, list_entries, read_bytes, read_json


@app.command("calibrate")
def calibrate_command(
    run_name: Annotated[str, typer.Argument(help="Name of a finished run with a round of SARR.")],
    out: Annotated[Path, typer.Argument(help="File to write, for `run --dry-run --calibration`.")],
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Measure, from what a run took, the rates that estimates of other runs are made with."""
    with mistakes_explained(debug):
        root = absolute(storage or Config().storage)
        location = join(root, "runs", run_name)
        if not exists(join(location, "state.json")):
            raise ValueError(f"{location}: no state.json here; give the name of a run that has ended")
        config = parse_config(read_bytes(join(location, "config.yaml")).decode())
        info = read_dataset_info(root, config.data.dataset)
        state = read_json(join(location, "state.json"))
        rates, sizes = {}, {}
        for stage in plan_stages(config, info):
            if stage.name not in state:
                continue
            folder = join(location, stage.name)
            inner = join(folder, "candidates/")  # a stage of its own below the training of its round
            entries = [entry for entry in list_entries(folder) if not entry.location.startswith(inner)]
            sizes[stage.name] = sum(entry.size for entry in entries)
            if stage.kind in ("mtct", "train"):
                last = json.loads(read_bytes(join(folder, "metrics.jsonl")).decode().splitlines()[-1])
                if last["resumed_at"] == 0:  # else its rate is not that of the whole stage
                    rates[stage.name] = last["samples_per_s"]
        machine = f"{platform.machine()}, {config.workers.num_workers} workers"
        found = calibrate(config, info, state, rates, sizes, machine)
        out.write_text(found.model_dump_json(indent=2) + "\n")
        console.print(f"{out}: the rates of run '{run_name}'", highlight=False, soft_wrap=True)
