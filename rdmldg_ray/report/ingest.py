"""What an ingest found, beside what the literature says of the data set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rdmldg_ray.datasets.index import repeated_images
from rdmldg_ray.datasets.ingest.opening import count_questions
from rdmldg_ray.datasets.ingest.plan import IngestPlan
from rdmldg_ray.datasets.ingest.writing import read_rejects
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.catalogue import DATASETS


def print_ingest(console: Console, plan: IngestPlan, info: DatasetInfo | None) -> dict[str, Any]:
    """Print what an ingest did, or without ``info`` what it would do; returns the same for scripts."""
    root, name = plan.target.root, plan.target.name
    found = {domain: len(files) for domain, files in plan.layout.environments.items()}
    rejects = read_rejects(root, name)["domain"].to_pylist() if info else [None] * len(plan.rejects)
    entry = DATASETS.get(name)
    title = f"{entry.title if entry else name} from {plan.source.location}"
    counts, rejected = info.counts if info else found, Counter(rejects)
    table = ingest_table(
        title if info else f"{title}, not read yet",
        counts=counts,
        rejected=rejected,
        literature=dict(zip(entry.environments, entry.counts, strict=True)) if entry and entry.counts else {},
        literature_total=entry.num_images if entry else None,
    )
    console.print(table)
    missing = {} if plan.target.questions else plan.layout.missing_classes()
    notes = class_notes(len(plan.target.classes), missing)
    if plan.target.questions:
        notes = [f"{count_questions(plan)} questions, {len(plan.target.classes)} answers"]
    notes += plan.layout.notes
    if info:
        notes += repetition_notes(repeated_images(root, info), info.questions)
    for note in notes:
        console.print(note)
    if info and rejects:
        console.print(f"rejects and their reasons: {plan.target.rejects()}", soft_wrap=True)
    return {
        "dataset": name,
        "read": info is not None,
        "images": dict(counts),
        "rejected": rejected.total(),
        "classes": list(plan.target.classes),
        "missing_classes": missing,
        "notes": [note.removeprefix("note: ") for note in notes if note.startswith("note: ")],
    }


def ingest_table(
    title: str,
    counts: Mapping[str, int],
    rejected: Mapping[str | None, int],
    literature: Mapping[str, int],
    literature_total: int | None,
) -> Table:
    """Images and rejects in each environment, and in all; a dash where the literature has no number.

    Args:
        rejected: by environment; those under None are counted in the last row only.
    """
    table = Table(title=title)
    table.add_column("environment")
    for column in ("images", "rejected", "literature"):
        table.add_column(column, justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count), str(rejected.get(name, 0)), _number(literature.get(name)))
    total = (sum(counts.values()), sum(rejected.values()))
    table.add_section()
    table.add_row("all", *map(str, total), _number(literature_total))
    return table


def class_notes(num_classes: int, missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines on the classes, and on the environments that lack some."""
    notes = [f"{num_classes} classes" if num_classes != 1 else "note: 1 class, so that any answer is right"]
    notes += [
        f"note: {environment} has no image of {', '.join(names)}" for environment, names in missing.items()
    ]
    return notes


def repetition_notes(repeated: Mapping[str, int], questions: bool) -> list[str]:
    """Lines on images that occur more than once; of one with several questions that is as it should be."""
    lines = {"domains": "in more than one domain; what is held out is then trained on too"}
    if not questions:
        lines["labels"] = "under more than one class; one of them is wrong"
        lines["all"] = "more than once; copies may lie in both splits of a domain"
    return [
        f"note: {count} {'image occurs' if count == 1 else 'images occur'} {line}"
        for name, line in lines.items()
        if (count := repeated[name])
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
