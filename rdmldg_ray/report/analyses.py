"""The paper's analyses of a fold, each with its table, CSV and picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdmldg_ray.datasets.index import base_classes, sample_index
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.evaluation.adaptive import adaptive_rows
from rdmldg_ray.evaluation.analyses import (
    base_to_new,
    domain_distances,
    entropy_falls,
    probability_shares,
    rejected_of_first,
)
from rdmldg_ray.evaluation.questions import by_question
from rdmldg_ray.report.plots import bars, lines
from rdmldg_ray.report.rows import rows_csv
from rdmldg_ray.runs.evaluated import EvaluatedFold
from rdmldg_ray.runs.results import rejected_by_round
from rdmldg_ray.runs.store import model_name
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.storage import join, list_files, write_bytes

_QUESTIONS_SHOWN = 10


@dataclass(frozen=True)
class Analysis:
    """What an analysis found, for the terminal, for scripts and as files."""

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    folder: str
    picture: bytes
    """PNG."""
    shares: Sequence[str] = ()
    """Columns of the rows that are shown in percent."""
    shown: Sequence[dict[str, Any]] | None = None
    """Rows for the terminal, where there are too many."""
    curve: Sequence[dict[str, Any]] | None = None
    """Points of a curve, which are then the CSV, the rows being that of ``<name>-chosen``."""

    def write(self) -> None:
        """Write CSV and picture below ``folder``."""
        write_bytes(join(self.folder, f"{self.name}.csv"), rows_csv(self.curve or self.rows))
        write_bytes(join(self.folder, f"{self.name}.png"), self.picture)
        if self.curve:
            write_bytes(join(self.folder, f"{self.name}-chosen.csv"), rows_csv(self.rows))


def tokens(fold: EvaluatedFold) -> Analysis:
    """Shares of unlikely and likely chain and class tokens, by model."""
    rows = probability_shares(fold.measured()[0])
    names = list(dict.fromkeys(row["model"] for row in rows))
    series: dict[str, list[float | None]] = {}
    for row in (row for row in rows if not row["held_out"]):
        for share in ("low", "high"):
            name = f"{row['target']} tokens {'< 0.25' if share == 'low' else '> 0.75'}"
            series.setdefault(name, [None] * len(names))[names.index(row["model"])] = 100 * row[share]
    heading = f"{fold.held_out} held out: target tokens of the sources by probability"
    return Analysis(
        name="tokens",
        title="probability of target tokens",
        rows=rows,
        shares=("low", "high", "low_without_end", "high_without_end"),
        folder=fold.folder,
        picture=bars(heading, "%", names, series),
    )


def entropy(
    fold: EvaluatedFold, before: str = "zero-shot", after: str | None = None, limit: int = 20
) -> Analysis:
    """The chain tokens whose entropy fell most between two models; by default to the last one.

    Raises:
        ValueError: for a model that was not measured, or when no token occurs often enough.
    """
    measured = fold.measured()[0]
    after = after or measured["model"][-1].as_py()
    rows = entropy_falls(measured, before, after)
    if not rows:
        raise ValueError(f"{fold.folder}: no chain token occurs often enough to be compared")
    shown = rows[:limit]
    return Analysis(
        name=f"entropy-{before}-{after}",
        title=f"mean entropy in nats where a token stands, {before} to {after}",
        rows=rows,
        shown=shown,
        folder=fold.folder,
        picture=bars(
            f"{fold.held_out} held out: tokens whose entropy fell most",
            "nats",
            [row["token"] for row in shown],
            {before: [row["before"] for row in shown], after: [row["after"] for row in shown]},
        ),
    )


def mmd(fold: EvaluatedFold, clip: Path | None = None) -> Analysis:
    """MMD^2 between domains of chain and image embeddings: the models' own, or those of a CLIP model.

    Args:
        clip: folder of a CLIP model.
    """
    if clip:
        from rdmldg_ray.evaluation.clip import embed_samples

        embeddings = embed_samples(clip, fold.probe_samples())
    else:
        embeddings = fold.measured()[1]
    rows = domain_distances(embeddings)
    first = [row for row in rows if row["model"] == rows[0]["model"]]
    pairs = list(dict.fromkeys(f"{row['first']} - {row['second']}" for row in first))
    series = {
        kind: [row["mmd_squared"] for row in first if row["kind"] == kind] for kind in ("image", "chain")
    }
    heading = f"MMD^2 between domains, embeddings of {first[0]['model']}"
    return Analysis(
        name="mmd-clip" if clip else "mmd",
        title="MMD^2 between domains",
        rows=rows,
        folder=fold.folder,
        picture=bars(heading, "MMD^2", pairs, series),
    )


def rejected(fold: EvaluatedFold) -> Analysis:
    """Share of the model's own chains that the filter rejected, by round of SARR, in all of the run's folds.

    Of all draws, and of each image's first one, where candidates are there still: with more draws for hard
    images, all draws do not compare with the paper's one for each image.

    Raises:
        ValueError: when no round is complete.
    """
    rows = rejected_by_round(fold.run.state)
    if not rows:
        raise ValueError(f"{fold.run.location}: no round of SARR is complete yet")
    for row in rows:
        drawn = fold.run.store.candidates_uri(row["held_out"], model_name(row["round"]))
        columns = ["candidate", "accepted"]
        there = bool(list_files(drawn, ".parquet"))
        row["rejected_of_first"] = rejected_of_first(read_candidates(drawn, columns)) if there else None
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(row["held_out"], []).append((row["round"], 100 * row["rejected"]))
    return Analysis(
        name="rejected",
        title="the model's own chains",
        rows=rows,
        shares=("rejected", "without_chain", "rejected_of_first"),
        folder=fold.run_folder,
        picture=lines("chains rejected by round, by held-out domain", "round", "%", series),
    )


def new_classes(fold: EvaluatedFold) -> Analysis:
    """Accuracy on classes trained on and on others, by model, of a run with ``data.classes=base``.

    Raises:
        ValueError: when the run was trained on all classes.
    """
    pipeline = fold.pipeline
    if pipeline.config.data.classes != "base":
        raise ValueError(f"{fold.run.location}: was trained on all classes; run with data.classes=base")
    base = base_classes(pipeline.info.classes)
    rows = [
        {"model": model, **row} for model in fold.models for row in base_to_new(fold.predictions(model), base)
    ]
    series = {
        f"{pathway}, {share}": [100 * row[share] for row in rows if row["pathway"] == pathway]
        for pathway in dict.fromkeys(row["pathway"] for row in rows)
        for share in ("base", "new")
    }
    title = f"{fold.held_out} held out: accuracy on base and new classes"
    return Analysis(
        name="new-classes",
        title=title,
        rows=rows,
        shares=("base", "new", "harmonic_mean"),
        folder=fold.folder,
        picture=bars(title, "%", fold.models, series),
    )


def questions(fold: EvaluatedFold) -> Analysis:
    """Accuracy by question, beside chance and the commonest answer, of a run on a data set of questions.

    Raises:
        ValueError: when the data set has classes.
    """
    pipeline = fold.pipeline
    if not pipeline.info.questions:
        raise ValueError(f"{pipeline.info.name}: asks the same about every image; this is for questions")
    samples = sample_index(pipeline.config.storage, pipeline.info, fold_domains(fold.held_out))
    rows = [
        {"model": model, **row}
        for model in fold.models
        for row in by_question(fold.predictions(model), samples)
    ]
    asked = list(dict.fromkeys(row["question"] for row in rows))[:_QUESTIONS_SHOWN]
    shown = [row for row in rows if row["question"] in asked]
    series: dict[str, list[float | None]] = {}
    for row in shown:
        series.setdefault(f"{row['question']} {row['pathway']}", []).append(100 * row["accuracy"])
    title = f"{fold.held_out} held out: accuracy by question, all of the target"
    return Analysis(
        name="questions",
        title=title,
        rows=rows,
        shown=shown,
        shares=("accuracy", "error", "chance", "commonest"),
        folder=fold.folder,
        picture=bars(title, "%", fold.models, series),
    )


def adaptive(fold: EvaluatedFold, stage: str | None = None) -> Analysis:
    """Reasoning only where the direct answer is unsure: accuracy against tokens.

    Args:
        stage: the model; the last by default.
    """
    stage = stage or fold.models[-1]
    rows, points = adaptive_rows(fold.predictions(stage))
    picture = lines(
        f"{fold.held_out} held out, {stage}: adaptive reasoning",
        "tokens generated for an image",
        "accuracy, %",
        {"by threshold": [(point["tokens"], 100 * point["accuracy"]) for point in points]},
        {row["how"]: (row["tokens"], 100 * row["accuracy"]) for row in rows},
    )
    return Analysis(
        name=f"adaptive-{stage}",
        title=f"{fold.held_out} held out, {stage}: all of the target",
        rows=rows,
        shares=("accuracy", "error", "reasoned"),
        curve=points,
        folder=fold.folder,
        picture=picture,
    )


ANALYSES: dict[str, Callable[..., Analysis]] = {
    "tokens": tokens,
    "entropy": entropy,
    "mmd": mmd,
    "rejected": rejected,
    "new-classes": new_classes,
    "questions": questions,
    "adaptive": adaptive,
}
