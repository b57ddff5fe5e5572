"""The commands that bring data in and out: ``ingest``, ``chains``."""

from collections import Counter
from typing import Annotated, Any, Literal

import typer

from rdmldg_ray.chains.export import export_chains
from rdmldg_ray.chains.imports import import_chains
from rdmldg_ray.cli.base import Debug, Json, Storage, answering, app, connected, console, mistakes_explained
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import write_embedded
from rdmldg_ray.datasets.ingest.opening import count_questions, plan_source
from rdmldg_ray.datasets.ingest.plan import DEFAULT_MAX_REJECTS, IngestPlan
from rdmldg_ray.datasets.ingest.writing import ingest as ingest_dataset
from rdmldg_ray.datasets.ingest.writing import is_ingested, read_rejects
from rdmldg_ray.datasets.schema import DatasetInfo, chains_location, read_dataset_info
from rdmldg_ray.domainbed.catalogue import DATASETS, get_dataset
from rdmldg_ray.report.ingest import class_notes, ingest_table
from rdmldg_ray.runtime.progress import progress_bar
from rdmldg_ray.storage import absolute, check_writable

chains_app = typer.Typer(help="Chains in and out.", no_args_is_help=True)
app.add_typer(chains_app, name="chains")


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, .zip or .tar of <environment>/<class>/<file>; or .jsonl, .csv or .parquet with "
            "image, question, options, answer and domain in each row. Local or s3://."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="pacs, vlcs, officehome, terraincognita, iconbed or custom.")],
    name: Annotated[str, typer.Option(help="What a custom data set is called on storage.")] = "custom",
    storage: Storage = None,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of files that may be rejected.")
    ] = DEFAULT_MAX_REJECTS,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a data set of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be read, and stop.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a data set to storage: checked against the catalogue, bad images or rows rejected and listed."""
    with mistakes_explained(debug), answering(as_json) as answer:
        config = Config(storage=absolute(storage or Config().storage))
        wanted = name if dataset == "custom" else get_dataset(dataset).name
        with console.status("listing the source"):
            plan = plan_source(absolute(source), config.storage, wanted, max_rejects)
        if dry_run:
            found = _print_ingest(plan, None)
        elif is_ingested(plan):
            found = _print_ingest(plan, read_dataset_info(config.storage, wanted))
            console.print(f"{wanted} is on storage already; nothing to do", highlight=False)
        else:
            check_writable(config.storage)
            with connected(config), progress_bar(console, "images") as bar:
                info = ingest_dataset(plan, replace, bar.update)
            found = _print_ingest(plan, info)
        answer(found)


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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a teacher's chains with their images, for other tools."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root, target = absolute(storage or Config().storage), absolute(location)
        check_writable(target)
        write_embedded(root, dataset)
        with console.status("writing"):
            count = export_chains(root, dataset, source, target, form, only_kept=not rejected)
        console.print(f"{count} chains of {source} in {target}", highlight=False, soft_wrap=True)
        answer({"location": target, "chains": count})


@chains_app.command("import")
def chains_import(
    location: Annotated[str, typer.Argument(help="A .jsonl or .parquet file, or a folder of such files.")],
    dataset: Annotated[str, typer.Option(help="The data set on storage that the chains belong to.")],
    source: Annotated[str, typer.Option(help="The name they get, for data.chains.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the source's chains.")] = False,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check chains that were made elsewhere, and write them as a teacher's."""
    with mistakes_explained(debug), answering(as_json) as answer:
        root = absolute(storage or Config().storage)
        counts = import_chains(absolute(location), root, dataset, source, replace)
        there = chains_location(root, dataset, source)
        found = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        console.print(f"{counts.total()} chains in {there}: {found}", highlight=False, soft_wrap=True)
        answer({"location": there, "chains": counts.total(), "verdicts": counts})


def _print_ingest(plan: IngestPlan, info: DatasetInfo | None) -> dict[str, Any]:
    """What an ingest did; without ``info``, what it would do. Returns the same for JSON."""
    root, name = plan.target.root, plan.target.name
    found = {domain: len(files) for domain, files in plan.layout.environments.items()}
    rejects = read_rejects(root, name)["domain"].to_pylist() if info else [None] * len(plan.rejects)
    known = DATASETS.get(name)
    literature = dict(zip(known.environments, known.counts, strict=True)) if known and known.counts else {}
    title = f"{known.title if known else name} from {plan.source.location}"
    counts, rejected = info.counts if info else found, Counter(rejects)
    console.print(
        ingest_table(
            title if info else f"{title}, not read yet",
            counts,
            rejected,
            literature,
            known.num_images if known else None,
        )
    )
    missing = {} if plan.target.questions else plan.layout.missing_classes()
    notes = class_notes(len(plan.target.classes), missing)
    if plan.target.questions:
        notes = [f"{count_questions(plan)} questions, {len(plan.target.classes)} answers"]
    for note in notes:
        console.print(note, highlight=False)
    if info and rejects:
        console.print(f"rejects and their reasons: {plan.target.rejects()}", highlight=False, soft_wrap=True)
    return {
        "dataset": name,
        "read": info is not None,
        "images": dict(counts),
        "rejected": rejected.total(),
        "classes": list(plan.target.classes),
        "missing_classes": missing,
    }
