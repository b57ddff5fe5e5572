"""``rdmldg sweep``: settings tried on held-out folds, by their validation accuracy."""

from typing import Annotated, Any

import typer
from rich.table import Table

from rdmldg_ray import api
from rdmldg_ray.cli.base import DryRun, Overrides, Recipe, app, command, console, read_recipe, say
from rdmldg_ray.config.load import dump_config
from rdmldg_ray.report.rows import rows_table
from rdmldg_ray.report.sweep import sweep_title
from rdmldg_ray.sweeps.space import load_space
from rdmldg_ray.sweeps.sweep_plan import SweepPlan


@command(app)
def sweep(
    recipe: Recipe,
    space: Annotated[str, typer.Option(help="A shipped space's name, or a path to a .yaml file.")],
    overrides: Overrides = None,
    dry_run: DryRun = False,
    storage: str | None = None,
) -> Any:
    """Try settings, each by its validation accuracy over the held-out folds, never by the target's.

    Trials share the stages that they have in common. An interrupted sweep resumes.
    """
    config = read_recipe(recipe, overrides, storage)
    chosen = load_space(space, config)
    if dry_run:
        return _print_plan(api.planned_sweep(config, chosen))
    done = api.sweep(config, chosen, console=console)
    console.print(rows_table(sweep_title(config.name, chosen.pathway), done.trials, shares=["score"]))
    say(f"{done.location}: results.csv, results.png")
    return {"location": done.location, "trials": done.trials}


def _print_plan(plan: SweepPlan) -> dict[str, Any]:
    say(dump_config(plan.config))
    trials = plan.space.num_trials()
    say(f"{trials} trials ({plan.space.search}) of {plan.stages} stages each")
    document = {
        "config": plan.config.model_dump(mode="json"),
        "search": plan.space.search,
        "trials": trials,
        "stages_of_a_trial": plan.stages,
    }
    if plan.shared is None:
        return document
    table = Table(title="stages of all trials; those with the same key are computed once")
    table.add_column("kind")
    for column in ("stages", "computed"):
        table.add_column(column, justify="right")
    for kind, (total, computed) in plan.shared.items():
        table.add_row(kind, str(total), str(computed))
    console.print(table)
    stages = {kind: {"stages": total, "computed": n} for kind, (total, n) in plan.shared.items()}
    return document | {"stages": stages}
