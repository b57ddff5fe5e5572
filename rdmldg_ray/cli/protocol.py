"""The commands for what the field compares by: ``collect``, ``baselines`` and ``ablate``."""

from typing import Annotated, Any, Literal, cast

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import (
    DryRun,
    Overrides,
    Recipe,
    Runs,
    Trials,
    app,
    command,
    console,
    read_recipe,
    say,
)
from rdmldg_ray.cli.runs import print_plan, print_results
from rdmldg_ray.domainbed.selection import METHODS
from rdmldg_ray.report.ablation import (
    ablation_accuracies,
    ablation_differences,
    ablation_images,
    ablation_table,
    differences_table,
)
from rdmldg_ray.report.protocol import (
    chosen_rows,
    chosen_table,
    collect_tables,
    error_note,
    single_source_tables,
)
from rdmldg_ray.runs.baselines import YARDSTICKS, Yardstick
from rdmldg_ray.sweeps.variants import ablation_comparisons, ablation_rows


@command(app)
def collect(
    runs: Runs,
    part: Annotated[
        Literal["in", "all"], typer.Option(help="Of the test domain: DomainBed's 'in' part, or all of it.")
    ] = "in",
    chosen: Annotated[bool, typer.Option("--chosen", help="List the chosen checkpoints too.")] = False,
    storage: str | None = None,
) -> Any:
    """Print DomainBed's tables of runs, or of .jsonl files of its records, by its model-selection methods."""
    found = api.collect(runs, storage=storage)
    records = [record for of_run in found.values() for record in of_run]
    say(f"{len(records)} records of {len(found)} runs")
    for table in [*collect_tables(records, part), *single_source_tables(records, part)]:
        console.print(table)
    say(error_note(records))
    if chosen:
        for method in METHODS:
            console.print(chosen_table(records, method))
    return {"part": part, "records": len(records), "chosen": chosen_rows(records, part)}


@command(app)
def baselines(
    recipe: Recipe,
    overrides: Overrides = None,
    yardsticks: Annotated[
        str, typer.Option(help=f"Some of {', '.join(YARDSTICKS)}, with commas between them.")
    ] = ",".join(YARDSTICKS),
    trials: Trials = None,
    storage: str | None = None,
) -> Any:
    """Measure what is not this method on the recipe's folds.

    A linear probe on its base, ERM with a small CNN, and the base fine-tuned on labels only.
    """
    config = read_recipe(recipe, overrides, storage)
    chosen = [name.strip() for name in yardsticks.split(",")]
    if unknown := [name for name in chosen if name not in YARDSTICKS]:
        raise ValueError(f"--yardsticks {unknown[0]}: there are {', '.join(YARDSTICKS)}")
    found = api.baselines(config, trials, yardsticks=cast(list[Yardstick], chosen), console=console)
    for table in collect_tables(found.records)[:1]:
        console.print(table)
    say(error_note(found.records))
    say(f"beside runs: rdmldg collect RUN... {found.file}")
    return {"file": found.file, "chosen": chosen_rows(found.records)}


@command(app)
def ablate(
    recipe: Recipe,
    overrides: Overrides = None,
    trials: Trials = None,
    dry_run: DryRun = False,
    storage: str | None = None,
) -> Any:
    """Run the paper's ablation: each part of the method without the others, and what it is worth."""
    config = read_recipe(recipe, overrides, storage)
    if dry_run:
        configs = api.ablation(config, trials)
        return {"runs": [print_plan(api.plan(one)) for of_kind in configs.values() for one in of_kind]}
    runs = api.ablate(config, trials, console=console)
    document: dict[str, Any] = {"runs": [print_results(one) for of_kind in runs.values() for one in of_kind]}
    states = {kind: [one.state for one in of_kind] for kind, of_kind in runs.items()}
    rows = ablation_rows(config.sarr.rounds)
    for measure in ("target_in", "target_all"):
        console.print(ablation_table(states, rows, measure))
        document[measure] = ablation_accuracies(states, rows, measure)
    document["differences"] = ablation_differences(runs, ablation_comparisons(config.sarr.rounds))
    console.print(differences_table(document["differences"]))
    say("+/- there is the standard error over images, p of a paired z-test; trials count as one")
    if differing := ablation_images(states):
        say(differing)
    return document
