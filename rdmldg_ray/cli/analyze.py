"""``rdmldg analyze``: the paper's analyses of a run, each printed and left as CSV and PNG."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import HeldOut, Run, Stage, app, command, console, say
from rdmldg_ray.report.rows import rows_table
from rdmldg_ray.storage import join

analyze_app = typer.Typer(
    help="The paper's analyses of a run, as table, CSV and picture.", no_args_is_help=True
)
app.add_typer(analyze_app, name="analyze")


@command(analyze_app)
def tokens(run: Run, held_out: HeldOut = None, storage: str | None = None) -> Any:
    """Share of unlikely (< 0.25) and likely (> 0.75) chain and class tokens, by stage of training."""
    return _analyze("tokens", run, held_out, storage)


@command(analyze_app)
def entropy(
    run: Run,
    held_out: HeldOut = None,
    before: Annotated[str, typer.Option(help="A stage of the run.")] = "zero-shot",
    after: Annotated[str | None, typer.Option(help="A later stage; the last by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many tokens to print.")] = 20,
    storage: str | None = None,
) -> Any:
    """The chain tokens whose entropy fell most between two stages of training."""
    return _analyze("entropy", run, held_out, storage, before=before, after=after, limit=limit)


@command(analyze_app)
def mmd(
    run: Run,
    held_out: HeldOut = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model, to embed with instead of the run's models.")
    ] = None,
    storage: str | None = None,
) -> Any:
    """MMD^2 between domains of chain and image embeddings, by the model's own encoders or by CLIP."""
    return _analyze("mmd", run, held_out, storage, clip=clip)


@command(analyze_app)
def rejected(run: Run, storage: str | None = None) -> Any:
    """Share of the model's own chains that the filter rejected, by round of SARR."""
    return _analyze("rejected", run, None, storage)


@command(analyze_app, "new-classes")
def new_classes(run: Run, held_out: HeldOut = None, storage: str | None = None) -> Any:
    """Accuracy on classes trained on and on others, of a run with data.classes=base, by stage."""
    return _analyze("new-classes", run, held_out, storage)


@command(analyze_app)
def questions(run: Run, held_out: HeldOut = None, storage: str | None = None) -> Any:
    """Accuracy by question, beside chance and the commonest answer, of a run on a data set of questions."""
    return _analyze("questions", run, held_out, storage)


@command(analyze_app)
def adaptive(run: Run, held_out: HeldOut = None, stage: Stage = None, storage: str | None = None) -> Any:
    """Reason only where the direct answer is unsure: accuracy against tokens, threshold from the sources."""
    return _analyze("adaptive", run, held_out, storage, stage=stage)


def _analyze(
    analysis: str, run: str, held_out: str | None, storage: str | None, **options: Any
) -> dict[str, Any]:
    found = api.analyze(analysis, run, held_out=held_out, storage=storage, console=console, **options)
    console.print(rows_table(found.title, found.shown or found.rows, found.shares))
    say(f"{join(found.folder, found.name)}.csv and .png")
    return {"rows": found.rows, **({"curve": found.curve} if found.curve else {})}
