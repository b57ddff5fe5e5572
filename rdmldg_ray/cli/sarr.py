"""The command on a round's chains: ``refilter``."""

from typing import Annotated

import typer

from rdmldg_ray.cli.base import Debug, Json, Storage, answering, app, console, mistakes_explained
from rdmldg_ray.config.schema import Config
from rdmldg_ray.report.rejections import print_round
from rdmldg_ray.runs.refilter import refilter_run
from rdmldg_ray.storage import absolute, join


@app.command()
def refilter(
    run_name: Annotated[str, typer.Argument(help="Name of a run with generated candidates.")],
    settings: Annotated[
        list[str], typer.Option("--set", help="A setting of the filter, as sarr.filter.min_logprob=-0.3.")
    ],
    into: Annotated[
        str | None, typer.Option(help="Name of the new run; <run>-refiltered by default.")
    ] = None,
    round_number: Annotated[int, typer.Option("--round", min=1, help="Round of SARR to filter anew.")] = 1,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Filter a run's stored candidates anew: a new run, ready to train, in seconds and without an engine."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root = absolute(storage or Config().storage)
        name, state = refilter_run(root, run_name, into, settings, round_number)
        location = join(root, "runs", name)
        for stage in [stage for stage in state if stage.endswith(f"/sarr-{round_number}/candidates")]:
            print_round(console, join(location, stage.removesuffix("/candidates")), state, stage)
        console.print(
            f"{location}: a run of its own, and '{run_name}' is as it was; to train on the new chains:\n"
            f"  rdmldg run <recipe of {run_name}> name={name} {' '.join(settings)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        answer({"name": name, "location": location, "state": state})
