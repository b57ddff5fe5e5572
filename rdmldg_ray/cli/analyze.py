"""``rdmldg analyze``: the paper's analyses of a run, each printed and left as CSV and PNG."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from rdmldg_ray.cli.base import Debug, Json, Storage, answering, app, connected, console, mistakes_explained
from rdmldg_ray.config.load import parse_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.index import base_classes, sample_index
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.evaluation.adaptive import adaptive_rows
from rdmldg_ray.evaluation.analyses import (
    base_to_new,
    domain_distances,
    entropy_falls,
    probability_shares,
    rejected_by_round,
)
from rdmldg_ray.evaluation.questions import by_question
from rdmldg_ray.report.plots import bars, lines
from rdmldg_ray.report.rows import rows_csv, rows_table
from rdmldg_ray.report.tables import held_out_domains, models
from rdmldg_ray.runs.pipeline import Pipeline
from rdmldg_ray.storage import absolute, exists, join, read_bytes, read_table, write_bytes, write_table

analyze_app = typer.Typer(
    help="The paper's analyses of a run, as table, CSV and picture.", no_args_is_help=True
)
app.add_typer(analyze_app, name="analyze")

Run = Annotated[str, typer.Argument(help="Name of a run.")]
HeldOut = Annotated[str | None, typer.Option(help="Held-out domain; the run's first by default.")]


_QUESTIONS_SHOWN = 10


@dataclass(frozen=True)
class _Run:
    """A run as it lies on storage."""

    pipeline: Pipeline
    state: dict[str, Any]
    held_out: str

    @property
    def folder(self) -> str:
        return join(self.pipeline.location, self.held_out, "analyses")


@analyze_app.command()
def tokens(
    run: Run, held_out: HeldOut = None, storage: Storage = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Share of unlikely (< 0.25) and likely (> 0.75) chain and class tokens, by stage of training."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        rows = probability_shares(_probed(opened)[0])
        names = list(dict.fromkeys(row["model"] for row in rows))
        series: dict[str, list[float | None]] = {}
        for row in (row for row in rows if not row["held_out"]):
            for share in ("low", "high"):
                name = f"{row['target']} tokens {'< 0.25' if share == 'low' else '> 0.75'}"
                series.setdefault(name, [None] * len(names))[names.index(row["model"])] = 100 * row[share]
        picture = bars(
            f"{opened.held_out} held out: target tokens of the sources by probability", "%", names, series
        )
        console.print(rows_table("probability of target tokens", rows, shares=("low", "high")))
        _write(opened.folder, "tokens", rows, picture)
        answer({"rows": rows})


@analyze_app.command()
def entropy(
    run: Run,
    held_out: HeldOut = None,
    before: Annotated[str, typer.Option(help="A stage of the run.")] = "zero-shot",
    after: Annotated[str | None, typer.Option(help="A later stage; the last by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many tokens to print.")] = 20,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The chain tokens whose entropy fell most between two stages of training."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        measured = _probed(opened)[0]
        after = after or measured["model"][-1].as_py()
        rows = entropy_falls(measured, before, after)
        if not rows:
            raise ValueError(f"{opened.folder}: no chain token occurs often enough to be compared")
        shown = rows[:limit]
        picture = bars(
            f"{opened.held_out} held out: tokens whose entropy fell most",
            "nats",
            [row["token"] for row in shown],
            {before: [row["before"] for row in shown], after: [row["after"] for row in shown]},
        )
        console.print(rows_table(f"mean entropy in nats where a token stands, {before} to {after}", shown))
        _write(opened.folder, f"entropy-{before}-{after}", rows, picture)
        answer({"rows": rows})


@analyze_app.command()
def mmd(
    run: Run,
    held_out: HeldOut = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model, to embed with instead of the run's models.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """MMD^2 between domains of chain and image embeddings, by the model's own encoders or by CLIP."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        if clip:
            from rdmldg_ray.evaluation.clip import embed_samples

            embeddings = embed_samples(clip, opened.pipeline.probe_set(opened.held_out)[1])
        else:
            embeddings = _probed(opened)[1]
        rows = domain_distances(embeddings)
        first = [row for row in rows if row["model"] == rows[0]["model"]]
        pairs = list(dict.fromkeys(f"{row['first']} - {row['second']}" for row in first))
        series = {
            kind: [row["mmd_squared"] for row in first if row["kind"] == kind] for kind in ("image", "chain")
        }
        title = f"MMD^2 between domains, embeddings of {first[0]['model']}"
        console.print(rows_table("MMD^2 between domains", rows))
        _write(opened.folder, "mmd-clip" if clip else "mmd", rows, bars(title, "MMD^2", pairs, series))
        answer({"rows": rows})


@analyze_app.command()
def rejected(run: Run, storage: Storage = None, as_json: Json = False, debug: Debug = False) -> None:
    """Share of the model's own chains that the filter rejected, by round of SARR."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, None, storage)
        rows = rejected_by_round(opened.state)
        if not rows:
            raise ValueError(f"{opened.pipeline.location}: no round of SARR is complete yet")
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            series.setdefault(row["held_out"], []).append((row["round"], 100 * row["rejected"]))
        picture = lines("chains rejected by round, by held-out domain", "round", "%", series)
        console.print(rows_table("the model's own chains", rows, shares=("rejected", "without_chain")))
        _write(join(opened.pipeline.location, "analyses"), "rejected", rows, picture)
        answer({"rows": rows})


@analyze_app.command("new-classes")
def new_classes(
    run: Run, held_out: HeldOut = None, storage: Storage = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Accuracy on classes trained on and on others, of a run with data.classes=base, by stage."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        pipeline = opened.pipeline
        if pipeline.config.data.classes != "base":
            raise ValueError(f"{pipeline.location}: was trained on all classes; run with data.classes=base")
        base = base_classes(pipeline.info.classes)
        names = models(opened.state, opened.held_out)
        rows = []
        for model in names:
            folder = join(pipeline.location, opened.held_out, "evaluation", model)
            found = base_to_new(read_table(join(folder, "predictions.parquet")), base)
            rows += [{"model": model, **row} for row in found]
        shares = ("base", "new", "harmonic_mean")
        series = {
            f"{pathway}, {share}": [100 * r[share] for r in rows if r["pathway"] == pathway]
            for pathway in dict.fromkeys(row["pathway"] for row in rows)
            for share in shares[:2]
        }
        title = f"{opened.held_out} held out: accuracy on base and new classes"
        console.print(rows_table(title, rows, shares))
        _write(opened.folder, "new-classes", rows, bars(title, "%", names, series))
        answer({"rows": rows})


@analyze_app.command()
def questions(
    run: Run, held_out: HeldOut = None, storage: Storage = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Accuracy by question, beside chance and the commonest answer, of a run on a data set of questions."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        pipeline = opened.pipeline
        if not pipeline.info.questions:
            raise ValueError(f"{pipeline.info.name}: asks the same about every image; this is for questions")
        samples = sample_index(pipeline.config.storage, pipeline.info, fold_domains(opened.held_out))
        names = models(opened.state, opened.held_out)
        rows = []
        for model in names:
            folder = join(pipeline.location, opened.held_out, "evaluation", model)
            found = by_question(read_table(join(folder, "predictions.parquet")), samples)
            rows += [{"model": model, **row} for row in found]
        asked = list(dict.fromkeys(row["question"] for row in rows))[:_QUESTIONS_SHOWN]
        shown = [row for row in rows if row["question"] in asked]
        series = {
            f"{question} {pathway}": [
                100 * r["accuracy"] for r in shown if (r["question"], r["pathway"]) == (question, pathway)
            ]
            for question, pathway in dict.fromkeys((r["question"], r["pathway"]) for r in shown)
        }
        title = f"{opened.held_out} held out: accuracy by question, all of the target"
        console.print(rows_table(title, shown, ("accuracy", "error", "chance", "commonest")))
        _write(opened.folder, "questions", rows, bars(title, "%", names, series))
        answer({"rows": rows})


@analyze_app.command()
def adaptive(
    run: Run,
    held_out: HeldOut = None,
    stage: Annotated[str | None, typer.Option(help="mtct, sarr-1, ...; the last by default.")] = None,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reason only where the direct answer is unsure: accuracy against tokens, threshold from the sources."""
    with mistakes_explained(debug), answering(as_json) as answer:
        opened = _open(run, held_out, storage)
        stage = stage or models(opened.state, opened.held_out)[-1]
        predictions = join(
            opened.pipeline.location, opened.held_out, "evaluation", stage, "predictions.parquet"
        )
        rows, points = adaptive_rows(read_table(predictions))
        picture = lines(
            f"{opened.held_out} held out, {stage}: adaptive reasoning",
            "tokens generated for an image",
            "accuracy, %",
            {"by threshold": [(point["tokens"], 100 * point["accuracy"]) for point in points]},
            {row["how"]: (row["tokens"], 100 * row["accuracy"]) for row in rows},
        )
        shares = ("accuracy", "error", "reasoned")
        console.print(rows_table(f"{opened.held_out} held out, {stage}: all of the target", rows, shares))
        _write(opened.folder, f"adaptive-{stage}", points, picture)
        write_bytes(join(opened.folder, f"adaptive-{stage}-chosen.csv"), rows_csv(rows))
        answer({"rows": rows, "curve": points})


def _open(run: str, held_out: str | None, storage: str | None) -> _Run:
    root = absolute(storage or Config().storage)
    location = join(root, "runs", run)
    if not exists(join(location, "state.json")):
        raise ValueError(f"{location}: no run with a complete stage here; correct its name, or --storage")
    config = parse_config(read_bytes(join(location, "config.yaml")).decode())
    config = config.model_copy(update={"storage": root})
    pipeline = Pipeline(config, read_dataset_info(root, config.data.dataset), console)
    state = pipeline.state()
    domains = held_out_domains(state)
    if not domains or (held_out and held_out not in domains):
        raise ValueError(
            f"{location}: no evaluation of {held_out or 'a domain'}; there is {', '.join(domains) or 'none'}"
        )
    return _Run(pipeline, state, held_out or domains[0])


def _probed(run: _Run) -> tuple[pa.Table, pa.Table]:
    """Tokens and embeddings of every evaluated model of a fold, measured once and then read."""
    locations = [join(run.folder, f"{name}.parquet") for name in ("tokens", "embeddings")]
    names = models(run.state, run.held_out)
    measured_names = read_table(locations[0], ["model"])["model"].unique() if exists(locations[1]) else []
    if [str(name) for name in measured_names] != names:
        from rdmldg_ray.evaluation.probe import probe_models

        pipeline = run.pipeline
        adapters, samples = pipeline.probe_set(run.held_out)
        with connected(pipeline.config), console.status(f"measuring {', '.join(names)}"):
            measured = probe_models(pipeline.config, list(pipeline.info.classes), adapters, samples)
        for location, table in zip(locations, measured, strict=True):
            write_table(location, table)
    return read_table(locations[0]), read_table(locations[1])


def _write(folder: str, name: str, rows: list[dict[str, Any]], picture: bytes) -> None:
    write_bytes(join(folder, f"{name}.csv"), rows_csv(rows))
    write_bytes(join(folder, f"{name}.png"), picture)
    console.print(f"{join(folder, name)}.csv and .png", highlight=False, soft_wrap=True)
