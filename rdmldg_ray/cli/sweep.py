"""``rdmldg sweep``: settings tried on held-out folds, by their validation accuracy."""

from typing import Annotated, Any

import typer
from rich.table import Table

from rdmldg_ray.api import open_dataset
from rdmldg_ray.cli.base import (
    Debug,
    DryRun,
    Json,
    Overrides,
    Recipe,
    Storage,
    answering,
    app,
    connected,
    console,
    mistakes_explained,
)
from rdmldg_ray.cli.runs import planned_dataset, resolve_config
from rdmldg_ray.config.load import dump_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.report.plots import parallel_coordinates
from rdmldg_ray.report.rows import rows_csv, rows_table
from rdmldg_ray.runs.cache_key import count_shared
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.storage import join, write_bytes
from rdmldg_ray.sweeps.space import SweepSpace, coordinates, load_space, ranked
from rdmldg_ray.sweeps.variants import with_settings


@app.command()
def sweep(
    recipe: Recipe,
    space: Annotated[str, typer.Option(help="A shipped space's name, or a path to a .yaml file.")],
    overrides: Overrides = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Try settings, each by its validation accuracy over the held-out folds, never by the target's.

    Trials share the stages that they have in common. An interrupted sweep goes on where it was.
    """
    with mistakes_explained(debug), answering(as_json) as answer:
        config = resolve_config(recipe, overrides, storage)
        chosen = load_space(space, config)
        if dry_run:
            return answer(_print_plan(config, planned_dataset(config), chosen))
        info = open_dataset(config)

        with connected(config):
            from rdmldg_ray.sweeps.tuner import run_sweep, sweep_location

            rows = ranked(run_sweep(config, info, chosen))
        title = f"sweep '{config.name}': validation accuracy of the {chosen.pathway} pathway"
        console.print(rows_table(title, rows, shares=["score"]))
        folder = sweep_location(config)
        write_bytes(join(folder, "results.csv"), rows_csv(rows))
        lines = coordinates(rows, list(chosen.settings))
        if lines:
            columns = [*chosen.settings, "validation, %"]
            picture = parallel_coordinates(title, columns, lines, "validation, %")
            write_bytes(join(folder, "results.png"), picture)
        console.print(f"{folder}: results.csv, results.png", highlight=False, soft_wrap=True)
        answer({"location": folder, "trials": rows})


def _print_plan(config: Config, info: DatasetInfo, space: SweepSpace) -> dict[str, Any]:
    console.print(dump_config(config), markup=False, highlight=False, soft_wrap=True)
    stages = plan_stages(config, info)
    console.print(
        f"{space.num_trials()} trials ({space.search}) of {len(stages)} stages each", highlight=False
    )
    planned = {
        "config": config.model_dump(mode="json"),
        "search": space.search,
        "trials": space.num_trials(),
        "stages_of_a_trial": len(stages),
    }
    if space.search != "grid":
        return planned
    trials = [with_settings(config, settings) for settings in space.grid()]
    table = Table(title="stages of all trials; those with the same address are computed once")
    table.add_column("kind")
    for column in ("stages", "computed"):
        table.add_column(column, justify="right")
    shared = count_shared(trials, info)
    for kind, (total, computed) in shared.items():
        table.add_row(kind, str(total), str(computed))
    console.print(table)
    stages_by_kind = {kind: {"stages": total, "computed": n} for kind, (total, n) in shared.items()}
    return planned | {"stages": stages_by_kind}
