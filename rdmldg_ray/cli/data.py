"""The commands that bring data in and out: ``ingest``, ``chains``."""

from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.chains.export import Form
from rdmldg_ray.cli.base import app, command, console, say
from rdmldg_ray.datasets.images import MOST_PIXELS
from rdmldg_ray.datasets.ingest.archives import DEFAULT_LIMITS, ReadLimits
from rdmldg_ray.datasets.ingest.plan import DEFAULT_MAX_REJECTS
from rdmldg_ray.datasets.ingest.writing import check_replaces
from rdmldg_ray.report.ingest import print_ingest
from rdmldg_ray.storage import absolute

chains_app = typer.Typer(help="Chains in and out.", no_args_is_help=True)
app.add_typer(chains_app, name="chains")


@command(app)
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, .zip or .tar of <environment>/<class>/<file>; or .jsonl, .csv or .parquet with "
            "image, question, options, answer and domain in each row. Local or s3://."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="pacs, vlcs, officehome, terraincognita or custom.")],
    name: Annotated[str, typer.Option(help="What a custom data set is called on storage.")] = "custom",
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of files that may be rejected.")
    ] = DEFAULT_MAX_REJECTS,
    max_files: Annotated[
        int, typer.Option(min=1, help="Most files that a source may hold.")
    ] = DEFAULT_LIMITS.files,
    max_unpacked_gb: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Most GB that an archive may unpack to.",
            show_default="100 times its size, at least 1 and at most 1000",
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=MOST_PIXELS, help="Most pixels that an image may have.")
    ] = DEFAULT_LIMITS.pixels,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a data set of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be read, and stop.")] = False,
    storage: str | None = None,
) -> Any:
    """Bring a data set to storage: checked against the catalogue, bad images or rows rejected and listed."""
    with console.status("listing the source"):
        unpacked = None if max_unpacked_gb is None else int(max_unpacked_gb * 1e9)
        limits = ReadLimits(max_files, unpacked, max_pixels)
        plan = api.plan_ingest(
            source, dataset, name=name, storage=storage, max_rejects=max_rejects, limits=limits
        )
    if dry_run:
        check_replaces(plan, replace)
    info = None if dry_run else api.run_ingest(plan, replace=replace, console=console)
    return print_ingest(console, plan, info)


@command(chains_app, "export")
def chains_export(
    out: Annotated[str, typer.Option(help="An empty or new folder, local or s3://.")],
    dataset: Annotated[str, typer.Option(help="A data set on storage, or iconbed.")],
    teacher: Annotated[str, typer.Option(help="Whose chains are written.")] = "rules",
    form: Annotated[
        Form, typer.Option(help="JSONL that LLaMA-Factory reads, or a folder for Hugging Face datasets.")
    ] = "sharegpt",
    rejected: Annotated[bool, typer.Option("--rejected", help="Write rejected chains too.")] = False,
    storage: str | None = None,
) -> Any:
    """Write a teacher's chains with their images, for other tools."""
    out = absolute(out)
    with console.status("writing"):
        count = api.export_chains(
            dataset, out, teacher=teacher, form=form, rejected=rejected, storage=storage
        )
    say(f"{count} chains of {teacher} in {out}")
    return {"location": out, "chains": count}


@command(chains_app, "import")
def chains_import(
    source: Annotated[str, typer.Argument(help="A .jsonl, .json or .parquet file, or a folder.")],
    dataset: Annotated[str, typer.Option(help="The data set on storage that the chains belong to.")],
    teacher: Annotated[str, typer.Option(help="The name they get, for data.chains.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the teacher's chains.")] = False,
    storage: str | None = None,
) -> Any:
    """Check chains that were made elsewhere, and write them as a teacher's."""
    location, verdicts = api.import_chains(source, dataset, teacher, replace=replace, storage=storage)
    found = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    say(f"{verdicts.total()} chains in {location}: {found}")
    return {"location": location, "chains": verdicts.total(), "verdicts": verdicts}
