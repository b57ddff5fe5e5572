"""The commands that run a recipe: ``demo``, ``run``, ``evaluate``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rdmldg_ray import api
from rdmldg_ray.cli.base import (
    DryRun,
    Overrides,
    Prices,
    Recipe,
    Trials,
    app,
    command,
    console,
    read_recipe,
    say,
)
from rdmldg_ray.config.load import dump_config
from rdmldg_ray.report.demo import print_demo_end
from rdmldg_ray.report.tables import domain_table, percent, summary_table, time_table
from rdmldg_ray.runs import estimate
from rdmldg_ray.runs.results import RunResults
from rdmldg_ray.runs.run_plan import RunPlan
from rdmldg_ray.storage import absolute


@command(app)
def demo(overrides: Overrides = None, dry_run: DryRun = False, storage: str | None = None) -> Any:
    """Run the method on the embedded data set with the embedded model, in a few minutes on two cores."""
    config = read_recipe("demo", overrides, storage)
    if dry_run:
        return {"runs": [print_plan(api.plan(config))]}
    done = api.run(config, console=console)
    document = print_results(done)
    print_demo_end(console, done)
    report = api.write_run_report(done)
    say("next: `rdmldg show demo --verdict rejected` prints chains that the filter rejected;")
    say("      `rdmldg run iconbed` holds out each of the four domains in turn, in half an hour;")
    say("      docs/own-data.md tells how to bring your own images")
    say(f"report with curves and a gallery of chains: {report}")
    return {"runs": [document], "report": report}


@command(app)
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    trials: Trials = None,
    dry_run: DryRun = False,
    calibration: Annotated[
        Path | None, typer.Option(help="With --dry-run: a file of `rdmldg calibrate`, for an estimate.")
    ] = None,
    prices: Prices = (0, 0),
    storage: str | None = None,
) -> Any:
    """Run a recipe: MTCT, rounds of SARR, evaluation. An interrupted run resumes."""
    configs = api.trials(read_recipe(recipe, overrides, storage), trials)
    if not dry_run:
        return {"runs": [print_results(done) for done in api.run_all(configs, console=console)]}
    rates = estimate.read_calibration(calibration) if calibration else None
    plans = [api.plan(config, rates=rates) for config in configs]
    documents = [print_plan(plan) for plan in plans]
    if rates:
        paid = estimate.Prices(worker_hour=prices[0], gb_month=prices[1])
        for plan, document in zip(plans, documents, strict=True):
            rows = plan.estimate or []
            estimate.print_estimate(console, plan.config, rows, rates=rates, prices=paid)
            document["estimate"] = [{**asdict(row), "dollars": row.cost(paid)} for row in rows]
    return {"runs": documents}


@command(app)
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="Location of an adapter; without it the base model.")
    ] = None,
    storage: str | None = None,
) -> Any:
    """Evaluate a model on the recipe's held-out domains and on the sources' validation parts."""
    config = read_recipe(recipe, overrides, storage)
    adapter = absolute(adapter) if adapter else None
    accuracy = api.evaluate(config, adapter, console=console)
    table = Table(title=f"{adapter or config.model.path}: accuracy, %")
    for column in ("held out", "pathway", "target (in)", "target (all)", "validation"):
        table.add_column(column)
    for domain, pathways in accuracy.items():
        for pathway, found in pathways.items():
            values = [found[key] for key in ("target_in", "target_all", "validation")]
            table.add_row(domain, pathway, *[percent(value) for value in values])
    console.print(table)
    return {"model": config.model.path, "adapter": adapter, "accuracy": accuracy}


def print_plan(plan: RunPlan) -> dict[str, Any]:
    """Print what a run would do; returns the same for scripts."""
    say(dump_config(plan.config))
    table = Table(title=f"plan of run '{plan.config.name}' at {plan.location}")
    table.add_column("stage")
    table.add_column("images", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("")
    for stage in plan.stages:
        most = "<= " if stage.at_most else ""
        steps = f"{most}{stage.steps}" if stage.steps else ""
        table.add_row(stage.name, f"{most}{stage.images}", steps, "complete" if stage.complete else "")
    console.print(table)
    if plan.memory:
        for line in plan.memory.lines():
            say(line)
    elif plan.config.workers.gpus_per_worker:
        say("memory of the GPUs: not known without the model's config.json; `rdmldg doctor` downloads it")
    for note in plan.notes:
        say(f"note: {note}")
    keys = ("name", "images", "steps", "complete")
    return {
        "name": plan.config.name,
        "location": plan.location,
        "config": plan.config.model_dump(mode="json"),
        "stages": [{key: getattr(stage, key) for key in keys} for stage in plan.stages],
        "memory": asdict(plan.memory) if plan.memory else None,
        "notes": plan.notes,
    }


def print_results(run: RunResults) -> dict[str, Any]:
    """Print what a run found; returns the same for scripts."""
    for domain in run.held_out:
        console.print(domain_table(run.state, domain))
    if len(run.held_out) > 1:
        console.print(summary_table(run.state))
    console.print(time_table(run.state))
    say(f"outputs: {run.location}")
    for stage in run.state:
        say(f"  {stage}/")
    return {"name": run.name, "location": run.location, "state": run.state}
