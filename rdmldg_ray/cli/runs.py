"""The commands around a run: ``demo``, ``run``, ``evaluate``, ``show``, ``export``."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.compute as pc
import typer
from rich.table import Table

from rdmldg_ray.api import find_adapter, located, open_dataset
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
    connected,
    console,
    mistakes_explained,
)
from rdmldg_ray.config.load import dump_config, load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import embedded_info, is_embedded, write_embedded
from rdmldg_ray.datasets.schema import DatasetInfo, chains_location, dataset_location, read_dataset_info
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.report.samples import print_samples
from rdmldg_ray.report.tables import domain_table, held_out_domains, percent, summary_table, time_table
from rdmldg_ray.runs.estimate import Prices, estimate, print_estimate, read_calibration
from rdmldg_ray.runs.pipeline import Pipeline
from rdmldg_ray.runs.results import read_run
from rdmldg_ray.storage import absolute, download_folder, exists, join, list_files, read_table
from rdmldg_ray.sweeps.variants import trial_configs


@app.command()
def demo(
    overrides: Overrides = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the method on the embedded data set with the embedded model, in a few minutes on two cores."""
    with mistakes_explained(debug), answering(as_json) as answer:
        answer({"runs": run_configs([resolve_config("demo", overrides, storage)], dry_run)})


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    trials: Trials = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    calibration: Annotated[
        Path | None, typer.Option(help="With --dry-run: a file of `rdmldg calibrate`, for an estimate.")
    ] = None,
    prices: Annotated[
        tuple[float, float],
        typer.Option(
            help="US dollars for an hour of a worker or engine, and for a GB and month.", metavar="HOUR GB"
        ),
    ] = (0, 0),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe: MTCT, rounds of SARR, evaluation; an interrupted run goes on where it was."""
    with mistakes_explained(debug), answering(as_json) as answer:
        configs = trial_configs(resolve_config(recipe, overrides, storage), trials)
        runs = run_configs(configs, dry_run)
        if dry_run and calibration:
            rates = read_calibration(calibration)
            paid = Prices(worker_hour=prices[0], gb_month=prices[1])
            for config, planned in zip(configs, runs, strict=True):
                info = planned_dataset(config)
                rows = estimate(config, info, rates, Pipeline(config, info, console).state())
                print_estimate(console, config, rows, rates, paid)
                planned["estimate"] = [{**asdict(row), "dollars": row.cost(paid)} for row in rows]
        answer({"runs": runs})


@app.command()
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="Location of an adapter; without it the base model.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a model on the recipe's held-out domains and on the sources' validation parts."""
    with mistakes_explained(debug), answering(as_json) as answer:
        config = resolve_config(recipe, overrides, storage)
        adapter = find_adapter(adapter)
        info = open_dataset(config)
        pipeline = Pipeline(config, info, console)
        table = Table(title=f"{adapter or config.model.path}: accuracy, %")
        for column in ("held out", "pathway", "target (in)", "target (all)", "validation"):
            table.add_column(column)
        found = {}
        with connected(config):
            try:
                for domain in dict.fromkeys(stage.held_out for stage in pipeline.stages):
                    _, found[domain] = pipeline.evaluate(domain, adapter)
            finally:
                pipeline.close()
        for domain, accuracies in found.items():
            for pathway, accuracy in accuracies.items():
                values = [accuracy[key] for key in ("target_in", "target_all", "validation")]
                table.add_row(domain, pathway, *[percent(value) for value in values])
        console.print(table)
        answer({"model": config.model.path, "adapter": adapter, "accuracy": found})


@app.command()
def show(
    run_name: Annotated[str, typer.Argument(help="Name of a run, or 'teacher' for the teacher's chains.")],
    held_out: Annotated[str | None, typer.Option(help="Held-out domain; the run's first by default.")] = None,
    round_number: Annotated[int, typer.Option("--round", min=1, help="Round of SARR.")] = 1,
    verdict: Annotated[Literal["kept", "rejected", "all"], typer.Option(help="Which chains.")] = "all",
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    dataset: Annotated[str, typer.Option(help="Data set of the teacher's chains.")] = "iconbed",
    teacher: Annotated[str, typer.Option(help="Source of the teacher's chains.")] = "rules",
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a few samples with their chains, kept or rejected and why."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root = absolute(storage or Config().storage)
        if run_name == "teacher":
            write_embedded(root, dataset)
            location = chains_location(root, dataset, teacher)
        else:
            location = _candidates(join(root, "runs", run_name), held_out, round_number)
        chains = read_table(location)
        if verdict != "all":
            chains = chains.filter(pc.field("kept") if verdict == "kept" else ~pc.field("kept"))
        shown = chains.slice(0, limit).to_pylist()
        print_samples(console, shown)
        console.print(f"{len(shown)} of {len(chains)} chains in {location}", highlight=False)
        answer({"location": location, "count": len(chains), "chains": shown})


@app.command()
def export(
    run_name: Annotated[str, typer.Argument(help="Name of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    held_out: Annotated[str | None, typer.Option(help="Held-out domain; the run's first by default.")] = None,
    stage: Annotated[str | None, typer.Option(help="mtct, sarr-1, ...; the last by default.")] = None,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write base plus adapter as a plain model folder that transformers and `vllm serve` load."""
    with mistakes_explained(debug), answering(as_json) as answer:
        if out.exists():
            raise ValueError(f"{out}: exists already; give a folder that does not")
        run = read_run(absolute(storage or Config().storage), run_name)
        run_location, config = run.location, run.config
        adapter = _adapter(run_location, held_out, stage)

        from rdmldg_ray.models.loading import save_merged

        with tempfile.TemporaryDirectory() as folder:
            local = download_folder(adapter, Path(folder))
            save_merged(model_folder(config.model.path), local, config.model, out)
        console.print(f"{out}: {config.model.path} with {adapter}", highlight=False, soft_wrap=True)
        answer({"folder": str(out.absolute()), "model": config.model.path, "adapter": adapter})


def resolve_config(recipe: str, overrides: list[str] | None, storage: str | None) -> Config:
    """The config of a recipe with overrides; its locations mean the same place everywhere."""
    config = load_config(recipe, overrides)
    return located(config.model_copy(update={"storage": storage or config.storage}))


def planned_dataset(config: Config) -> DatasetInfo:
    """What is known of the data set before anything is written."""
    written = exists(join(dataset_location(config.storage, config.data.dataset), "dataset.json"))
    if is_embedded(config.data.dataset) and not written:
        return embedded_info(config.data.dataset)
    return read_dataset_info(config.storage, config.data.dataset)


def run_configs(configs: list[Config], dry_run: bool) -> list[dict[str, Any]]:
    """Run configs of one data set one after the other, in one Ray session, and print their results.

    Returns:
        For JSON, each run's name, place and state, of a dry run its config and plan.
    """
    if dry_run:
        return [_print_plan(config) for config in configs]
    info = open_dataset(configs[0])
    pipelines = [Pipeline(config, info, console) for config in configs]
    for pipeline in pipelines:
        pipeline.check_chains()
        pipeline.prepare()
    remaining = [pipeline for pipeline in pipelines if pipeline.remaining()]
    if remaining:
        with connected(configs[0]):
            for pipeline in remaining:
                if len(pipelines) > 1:
                    console.rule(f"run '{pipeline.config.name}'")
                pipeline.run()
    for pipeline in pipelines:
        if pipeline not in remaining:
            console.print(f"run '{pipeline.config.name}' is complete; nothing to do", highlight=False)
        _print_results(pipeline)
    return [
        {"name": pipeline.config.name, "location": pipeline.location, "state": pipeline.state()}
        for pipeline in pipelines
    ]


def _print_plan(config: Config) -> dict[str, Any]:
    info = planned_dataset(config)
    console.print(dump_config(config), markup=False, highlight=False, soft_wrap=True)
    pipeline = Pipeline(config, info, console)
    pipeline.check_settings()
    remaining = pipeline.remaining()
    table = Table(title=f"plan of run '{config.name}' at {pipeline.location}")
    table.add_column("stage")
    table.add_column("images", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("")
    stages = []
    for stage in pipeline.stages:
        images, steps = pipeline.workload(stage)
        # What a round trains on is known when its chains are.
        most = "<= " if stage.kind == "train" else ""
        complete = stage not in remaining
        table.add_row(
            stage.name, f"{most}{images}", f"{most}{steps}" if steps else "", "complete" if complete else ""
        )
        stages.append({"name": stage.name, "images": images, "steps": steps, "complete": complete})
    console.print(table)
    config_tree = config.model_dump(mode="json")
    return {"name": config.name, "location": pipeline.location, "config": config_tree, "stages": stages}


def _print_results(pipeline: Pipeline) -> None:
    state = pipeline.state()
    domains = held_out_domains(state)
    for domain in domains:
        console.print(domain_table(state, domain))
    if len(domains) > 1:
        console.print(summary_table(state))
    console.print(time_table(state))
    console.print(f"outputs: {pipeline.location}", highlight=False, soft_wrap=True)
    for stage in pipeline.stages:
        console.print(f"  {stage.name}/", highlight=False)


def _candidates(run_location: str, held_out: str | None, round_number: int) -> str:
    files = [f for f in list_files(run_location, ".parquet") if f"/sarr-{round_number}/candidates/" in f]
    folders = list(dict.fromkeys(file.rsplit("/", 1)[0] for file in files))
    for folder in folders:
        if held_out is None or f"/{held_out}/sarr-" in folder:
            return folder
    raise ValueError(
        f"{run_location}: no candidates of round {round_number} for {held_out or 'any domain'}; correct "
        "--round, --held-out or the run's name, or look how far it is with `rdmldg status`"
    )


def _adapter(run_location: str, held_out: str | None, stage: str | None) -> str:
    """The adapter that a training of a run left: by default of the first domain and its last stage."""
    found = list_files(run_location, f"/adapter/{PARITY_FILE}")
    stages = [file.removeprefix(f"{run_location}/").split("/")[:2] for file in found]
    for file, (domain, trained) in reversed(list(zip(found, stages, strict=True))):
        if domain == (held_out or stages[0][0]) and stage in (None, trained):
            return file.removesuffix(f"/{PARITY_FILE}")
    raise ValueError(f"{run_location}: no adapter of {stage or 'any stage'} for {held_out or 'any domain'}")
