"""``rdmldg``: a thin door. Parses, calls, prints."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
import typer
from rich.console import Console
from rich.table import Table

from rdmldg_ray.chains.export import export_chains
from rdmldg_ray.chains.importing import import_chains
from rdmldg_ray.config import Config, ConfigError, dump_config, load_config, parse_config
from rdmldg_ray.domainbed.catalogue import DATASETS, get_dataset
from rdmldg_ray.domainbed.ingest import ingest as ingest_dataset
from rdmldg_ray.domainbed.ingest import is_ingested, read_rejects
from rdmldg_ray.domainbed.ingest_plan import DEFAULT_MAX_REJECTS, IngestPlan, plan_ingest
from rdmldg_ray.domainbed.samples import (
    DatasetInfo,
    chains_location,
    dataset_location,
    iconbed_info,
    read_dataset_info,
    write_iconbed,
)
from rdmldg_ray.errors import user_mistake
from rdmldg_ray.models.folder import check_model, looks_local, model_folder
from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.pipeline import Pipeline
from rdmldg_ray.progress import progress_bar
from rdmldg_ray.report.ingest import class_notes, ingest_table
from rdmldg_ray.report.samples import print_samples
from rdmldg_ray.report.tables import domain_table, held_out_domains, percent, summary_table, time_table
from rdmldg_ray.storage import (
    check_writable,
    download_folder,
    exists,
    join,
    list_files,
    read_bytes,
    read_table,
)

app = typer.Typer(
    help="Fine-tune multimodal LLMs for domain generalization by reasoning (RD-MLDG), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
chains_app = typer.Typer(help="Chains in and out.", no_args_is_help=True)
app.add_typer(chains_app, name="chains")
console = Console()

Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name, or a path to a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key.path=value, such as sarr.rounds=2.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, and stop.")]
Storage = Annotated[str | None, typer.Option(help="Local path or s3://bucket/prefix; sets 'storage'.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def demo(
    overrides: Overrides = None, storage: Storage = None, dry_run: DryRun = False, debug: Debug = False
) -> None:
    """Run the method on the embedded data set with the embedded model, in a few minutes on two cores."""
    with _mistakes_explained(debug):
        _run(_config("demo", overrides, storage), dry_run)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Run a recipe: MTCT, rounds of SARR, evaluation; an interrupted run goes on where it was."""
    with _mistakes_explained(debug):
        _run(_config(recipe, overrides, storage), dry_run)


@app.command()
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="Location of an adapter; without it the base model.")
    ] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Evaluate a model on the recipe's held-out domains and on the sources' validation parts."""
    with _mistakes_explained(debug):
        config = _config(recipe, overrides, storage)
        adapter = _absolute(adapter) if adapter else None
        for file in ("adapter_config.json", PARITY_FILE):
            if adapter and not exists(join(adapter, file)):
                raise ValueError(f"{adapter}: no {file} here; give the folder that a training left")
        info = _dataset(config)
        pipeline = Pipeline(config, info, console)
        table = Table(title=f"{adapter or config.model.path}: accuracy, %")
        for column in ("held out", "pathway", "target (in)", "target (all)", "validation"):
            table.add_column(column)
        with _connected(config):
            try:
                for domain in dict.fromkeys(stage.held_out for stage in pipeline.stages):
                    _, accuracies = pipeline.evaluate(domain, adapter)
                    for pathway, accuracy in accuracies.items():
                        values = [accuracy[key] for key in ("target_in", "target_all", "validation")]
                        table.add_row(domain, pathway, *[percent(value) for value in values])
            finally:
                pipeline.close()
        console.print(table)


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
    debug: Debug = False,
) -> None:
    """Show a few samples with their chains, kept or rejected and why."""
    with _mistakes_explained(debug):
        root = _absolute(storage or Config().storage)
        if run_name == "teacher":
            if dataset == "iconbed":
                write_iconbed(root)
            location = chains_location(root, dataset, teacher)
        else:
            location = _candidates(join(root, "runs", run_name), held_out, round_number)
        chains = read_table(location)
        if verdict != "all":
            chains = chains.filter(pc.field("kept") if verdict == "kept" else ~pc.field("kept"))
        print_samples(console, chains.slice(0, limit).to_pylist())
        console.print(f"{min(limit, len(chains))} of {len(chains)} chains in {location}", highlight=False)


@app.command()
def export(
    run_name: Annotated[str, typer.Argument(help="Name of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    held_out: Annotated[str | None, typer.Option(help="Held-out domain; the run's first by default.")] = None,
    stage: Annotated[str | None, typer.Option(help="mtct, sarr-1, ...; the last by default.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Write base plus adapter as a plain model folder that transformers and `vllm serve` load."""
    with _mistakes_explained(debug):
        if out.exists():
            raise ValueError(f"{out}: exists already; give a folder that does not")
        run_location = join(_absolute(storage or Config().storage), "runs", run_name)
        config = parse_config(read_bytes(join(run_location, "config.yaml")).decode())
        adapter = _adapter(run_location, held_out, stage)

        from rdmldg_ray.models.loading import save_merged

        with tempfile.TemporaryDirectory() as folder:
            local = download_folder(adapter, Path(folder))
            save_merged(model_folder(config.model.path), local, config.model, out)
        console.print(f"{out}: {config.model.path} with {adapter}", highlight=False, soft_wrap=True)


@app.command()
def ingest(
    source: Annotated[
        str, typer.Argument(help="Folder, .zip or .tar of <environment>/<class>/<file>; local or s3://.")
    ],
    dataset: Annotated[str, typer.Option(help="pacs, vlcs, officehome, terraincognita, iconbed or custom.")],
    name: Annotated[str, typer.Option(help="What a custom data set is called on storage.")] = "custom",
    storage: Storage = None,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of files that may be rejected.")
    ] = DEFAULT_MAX_REJECTS,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a data set of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be read, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Bring a data set to storage: checked against the catalogue, bad images rejected and listed."""
    with _mistakes_explained(debug):
        config = Config(storage=_absolute(storage or Config().storage))
        wanted = name if dataset == "custom" else get_dataset(dataset).name
        with console.status("listing the source"):
            plan = plan_ingest(_absolute(source), config.storage, wanted, max_rejects)
        if dry_run:
            _print_ingest(plan, None)
        elif is_ingested(plan):
            _print_ingest(plan, read_dataset_info(config.storage, wanted))
            console.print(f"{wanted} is on storage already; nothing to do", highlight=False)
        else:
            check_writable(config.storage)
            with _connected(config), progress_bar(console, "images") as bar:
                info = ingest_dataset(plan, replace, bar.update)
            _print_ingest(plan, info)


@chains_app.command("export")
def chains_export(
    location: Annotated[str, typer.Argument(help="An empty or new folder, local or s3://.")],
    dataset: Annotated[str, typer.Option(help="A data set on storage.")],
    source: Annotated[str, typer.Option(help="The teacher whose chains are written.")] = "rules",
    form: Annotated[
        Literal["sharegpt", "huggingface"],
        typer.Option(help="JSONL that LLaMA-Factory reads, or a folder for Hugging Face datasets."),
    ] = "sharegpt",
    rejected: Annotated[bool, typer.Option("--rejected", help="Write rejected chains too.")] = False,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Write a teacher's chains with their images, for other tools."""
    with _mistakes_explained(debug):
        root, target = _absolute(storage or Config().storage), _absolute(location)
        check_writable(target)
        with console.status("writing"):
            count = export_chains(root, dataset, source, target, form, only_kept=not rejected)
        console.print(f"{count} chains of {source} in {target}", highlight=False, soft_wrap=True)


@chains_app.command("import")
def chains_import(
    location: Annotated[str, typer.Argument(help="A .jsonl or .parquet file, or a folder of such files.")],
    dataset: Annotated[str, typer.Option(help="The data set on storage that the chains belong to.")],
    source: Annotated[str, typer.Option(help="The name they get, for data.chains.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the source's chains.")] = False,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Check chains that were made elsewhere, and write them as a teacher's."""
    with _mistakes_explained(debug):
        root = _absolute(storage or Config().storage)
        counts = import_chains(_absolute(location), root, dataset, source, replace)
        there = chains_location(root, dataset, source)
        found = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        console.print(f"{counts.total()} chains in {there}: {found}", highlight=False, soft_wrap=True)


@contextmanager
def _mistakes_explained(debug: bool) -> Iterator[None]:
    """End a user's mistake with its message and exit code 2; let all else pass."""
    try:
        yield
    except Exception as error:
        mistake = user_mistake(error)
        if mistake is None or debug:
            raise
        Console(stderr=True).print(
            f"error: {mistake}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        raise typer.Exit(2) from None


def _config(recipe: str, overrides: list[str] | None, storage: str | None) -> Config:
    config = load_config(recipe, overrides)
    model = config.model
    if model.path != "tiny" and looks_local(model.path):
        model = model.model_copy(update={"path": _absolute(model.path)})
    return config.model_copy(update={"storage": _absolute(storage or config.storage), "model": model})


def _absolute(location: str) -> str:
    # Workers run in other folders, where a relative path would mean another place.
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def _dataset(config: Config) -> DatasetInfo:
    """Check what can be checked at once, and write the embedded data set when it is the one asked for."""
    check_model(config.model.path)
    check_writable(config.storage)
    if config.data.dataset == "iconbed":
        write_iconbed(config.storage)
    info = read_dataset_info(config.storage, config.data.dataset)
    return info


def _run(config: Config, dry_run: bool) -> None:
    if dry_run:
        return _print_plan(config)
    info = _dataset(config)
    chains = chains_location(config.storage, info.name, config.data.chains)
    if config.mtct.weights.reasoning > 0 and not list_files(chains, ".parquet"):
        raise ConfigError(f"data.chains: no chains of '{config.data.chains}' in {chains}")
    pipeline = Pipeline(config, info, console)
    pipeline.prepare()
    if pipeline.remaining():
        with _connected(config):
            pipeline.run()
    else:
        console.print(f"run '{config.name}' is complete; nothing to do", highlight=False)
    _print_results(pipeline)


def _print_plan(config: Config) -> None:
    embedded = config.data.dataset == "iconbed"
    written = exists(join(dataset_location(config.storage, config.data.dataset), "dataset.json"))
    info = (
        iconbed_info() if embedded and not written else read_dataset_info(config.storage, config.data.dataset)
    )
    console.print(dump_config(config), markup=False, highlight=False, soft_wrap=True)
    pipeline = Pipeline(config, info, console)
    pipeline.check_settings()
    remaining = pipeline.remaining()
    table = Table(title=f"plan of run '{config.name}' at {pipeline.location}")
    table.add_column("stage")
    table.add_column("images", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("")
    for stage in pipeline.stages:
        images, steps = pipeline.workload(stage)
        table.add_row(stage.name, images, steps, "" if stage in remaining else "complete")
    console.print(table)


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


def _print_ingest(plan: IngestPlan, info: DatasetInfo | None) -> None:
    """What an ingest did; without ``info``, what it would do."""
    root, name = plan.target.root, plan.target.name
    found = {domain: len(files) for domain, files in plan.layout.environments.items()}
    rejects = read_rejects(root, name)["domain"].to_pylist() if info else [None] * len(plan.rejects)
    known = DATASETS.get(name)
    literature = dict(zip(known.environments, known.counts, strict=True)) if known and known.counts else {}
    title = f"{known.title if known else name} from {plan.source.location}"
    console.print(
        ingest_table(
            title if info else f"{title}, not read yet",
            info.counts if info else found,
            Counter(rejects),
            literature,
            known.num_images if known else None,
        )
    )
    for note in class_notes(len(plan.target.classes), plan.layout.missing_classes()):
        console.print(note, highlight=False)
    if info and rejects:
        console.print(f"rejects and their reasons: {plan.target.rejects()}", highlight=False, soft_wrap=True)


@contextmanager
def _connected(config: Config) -> Iterator[None]:
    from rdmldg_ray.ray_session import ray_session

    with ray_session(config) as logs:
        console.print(f"logs of Ray, DeepSpeed and vLLM: {logs}", highlight=False, soft_wrap=True)
        yield


def _candidates(run_location: str, held_out: str | None, round_number: int) -> str:
    files = [f for f in list_files(run_location, ".parquet") if f"/sarr-{round_number}/candidates/" in f]
    folders = list(dict.fromkeys(file.rsplit("/", 1)[0] for file in files))
    for folder in folders:
        if held_out is None or f"/{held_out}/sarr-" in folder:
            return folder
    raise ValueError(f"{run_location}: no candidates of round {round_number} for {held_out or 'any domain'}")


def _adapter(run_location: str, held_out: str | None, stage: str | None) -> str:
    """The adapter that a training of a run left: by default of the first domain and its last stage."""
    found = list_files(run_location, "/adapter/adapter_config.json")
    stages = [file.removeprefix(f"{run_location}/").split("/")[:2] for file in found]
    for file, (domain, trained) in reversed(list(zip(found, stages, strict=True))):
        if domain == (held_out or stages[0][0]) and stage in (None, trained):
            return file.removesuffix("/adapter_config.json")
    raise ValueError(f"{run_location}: no adapter of {stage or 'any stage'} for {held_out or 'any domain'}")
