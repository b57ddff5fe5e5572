"""The commands for what the field compares by: ``collect`` and ``ablate``."""

import fnmatch
from typing import Annotated, Literal

import typer

from rdmldg_ray.cli.base import (
    Debug,
    DryRun,
    Json,
    Overrides,
    Recipe,
    Storage,
    Trials,
    answering,
    app,
    console,
    mistakes_explained,
)
from rdmldg_ray.cli.runs import resolve_config, run_configs
from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.records import RESULTS_FILE, read_results
from rdmldg_ray.domainbed.selection import METHODS
from rdmldg_ray.report.ablation import ablation_accuracies, ablation_table
from rdmldg_ray.report.protocol import chosen_rows, chosen_table, collect_tables, single_source_tables
from rdmldg_ray.storage import absolute, exists, join, list_folders, read_json
from rdmldg_ray.sweeps.variants import ablation_configs, ablation_rows, trial_configs


@app.command()
def collect(
    runs: Annotated[
        list[str],
        typer.Argument(help="Names of runs, such as 'pacs-trial-*', or .jsonl files of DomainBed's records."),
    ],
    part: Annotated[
        Literal["in", "all"], typer.Option(help="Of the test domain: DomainBed's 'in' part, or all of it.")
    ] = "in",
    chosen: Annotated[bool, typer.Option("--chosen", help="List the chosen checkpoints too.")] = False,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print DomainBed's tables of runs: accuracy by each of its three model-selection methods."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root = join(absolute(storage or Config().storage), "runs")
        locations = [location for run in runs for location in _results(root, run)]
        records = [record for location in locations for record in read_results(location)]
        console.print(f"{len(records)} records of {len(locations)} runs", highlight=False)
        for table in [*collect_tables(records, part), *single_source_tables(records, part)]:
            console.print(table)
        if chosen:
            for method in METHODS:
                console.print(chosen_table(records, method))
        answer({"part": part, "records": len(records), "chosen": chosen_rows(records, part)})


@app.command()
def ablate(
    recipe: Recipe,
    overrides: Overrides = None,
    trials: Trials = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the paper's ablation: zero-shot, labels only, chains only, MTCT, SARR without MTCT, both."""
    with mistakes_explained(debug), answering(as_json) as answer:
        config = resolve_config(recipe, overrides, storage)
        variants = [ablation_configs(trial) for trial in trial_configs(config, trials)]
        runs = run_configs([config for variant in variants for config in variant.values()], dry_run)
        found = {"runs": runs}
        if not dry_run:
            states = {
                name: [read_json(join(v[name].storage, "runs", v[name].name, "state.json")) for v in variants]
                for name in variants[0]
            }
            rows = ablation_rows(config.sarr.rounds)
            for measure in ("target_in", "target_all"):
                console.print(ablation_table(states, rows, measure))
                found[measure] = ablation_accuracies(states, rows, measure)
        answer(found)


def _results(root: str, named: str) -> list[str]:
    """Where the results of the runs of a name lie, which may hold wildcards."""
    if named.endswith(".jsonl"):
        return [absolute(named)]
    names = fnmatch.filter(list_folders(root), named)
    found = [join(root, name) for name in names if exists(join(root, name, RESULTS_FILE))]
    if not found:
        raise ValueError(f"{root}: no run '{named}' with a {RESULTS_FILE}; a run writes it with its results")
    return found
