"""The commands on what a run left: ``show``, ``export``, ``refilter``, ``calibrate``, ``clean``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import DryRun, HeldOut, Round, Run, Runs, Stage, app, command, console, say
from rdmldg_ray.report.rejections import print_round
from rdmldg_ray.report.samples import print_samples
from rdmldg_ray.runs.store import stages_of

_TEACHER = "teacher"


@command(app)
def show(
    run: Annotated[
        str, typer.Argument(help="Name or path of a run, or 'teacher' for a teacher's chains.", metavar="RUN")
    ],
    held_out: HeldOut = None,
    round_number: Round = 1,
    verdict: Annotated[api.Verdict, typer.Option(help="Which chains.")] = "all",
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    dataset: Annotated[str, typer.Option(help="With 'teacher': the data set.")] = "iconbed",
    teacher: Annotated[str, typer.Option(help="With 'teacher': whose chains.")] = "rules",
    storage: str | None = None,
) -> Any:
    """Show a few samples with their chains, accepted or rejected and why."""
    if run == _TEACHER:
        found = api.teacher_chains(dataset, teacher, verdict=verdict, storage=storage)
    else:
        found = api.candidates(
            run, held_out=held_out, round_number=round_number, verdict=verdict, storage=storage
        )
    shown = found.table.slice(0, limit).to_pylist()
    print_samples(console, shown)
    say(f"{len(shown)} of {len(found.table)} chains in {found.location}")
    return {"location": found.location, "count": len(found.table), "chains": shown}


@command(app)
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    held_out: HeldOut = None,
    stage: Stage = None,
    storage: str | None = None,
) -> Any:
    """Write base plus adapter as a plain model folder that transformers and `vllm serve` load."""
    found = api.export_model(run, out, held_out=held_out, stage=stage, storage=storage)
    say(f"{out}: {found.model} with {found.adapter}")
    return asdict(found)


@command(app)
def refilter(
    run: Run,
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="Settings of the filter, as sarr.filter.min_logprob=-0.3.", metavar="KEY.PATH=VALUE..."
        ),
    ],
    into: Annotated[
        str | None, typer.Option(help="Name of the new run; <run>-refiltered by default.")
    ] = None,
    round_number: Round = 1,
    storage: str | None = None,
) -> Any:
    """Filter a run's stored candidates anew: a new run, ready to train, in seconds and without an engine."""
    new = api.refilter(run, overrides, into=into, round_number=round_number, storage=storage)
    for stage in stages_of(new.state, "generate"):
        if stage.round == round_number:
            print_round(console, new.store, stage, new.state)
    say(
        f"{new.location}: a run of its own, and '{run}' is as it was; to train on the new chains:\n"
        f"  rdmldg run <recipe of {run}> name={new.name} {' '.join(overrides)}"
    )
    return {"name": new.name, "location": new.location, "state": new.state}


@command(app)
def calibrate(
    run: Run,
    out: Annotated[Path, typer.Option(help="File to write, for `run --dry-run --calibration`.")],
    storage: str | None = None,
) -> Any:
    """Measure, from what a finished run took, the rates that estimates of other runs are made with."""
    found = api.calibrate(run, storage=storage)
    out.write_text(found.model_dump_json(indent=2) + "\n")
    say(f"{out}: the rates of run '{run}'")
    return found.model_dump()


@command(app)
def clean(runs: Runs, dry_run: DryRun = False, storage: str | None = None) -> Any:
    """Delete the checkpoints of complete trainings, and answers that a killed command left."""
    removed = api.clean(runs, dry_run=dry_run, storage=storage, console=console)
    for one in removed:
        say(f"{one.location}: {one.files} files, {one.bytes / 1e6:.1f} MB")
    total = sum(one.bytes for one in removed)
    say(f"{total / 1e9:.3f} GB {'would be' if dry_run else 'are'} free")
    return [asdict(one) for one in removed]
