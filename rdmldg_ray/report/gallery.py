"""The report's gallery: images with the teacher's and the model's own chains side by side."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.results import RunResults
from rdmldg_ray.storage import StorageError, read_images

WRONG, RIGHT, REJECTED, ACCEPTED = "answer wrong", "answer right", "chain rejected", "chain accepted"

# Of the cards that are shown: what went wrong is what people look for.
_SHARES = {WRONG: 0.4, RIGHT: 0.15, REJECTED: 0.25, ACCEPTED: 0.2}
_LARGEST_PIXELS = 320


@dataclass(frozen=True)
class Card:
    """An image with what was written about it."""

    id: str
    verdict: str
    """``answer wrong``, ``answer right``, ``chain rejected`` or ``chain accepted``."""
    label: str
    domain: str
    held_out: str
    stage: str
    note: str
    """What was answered, or why the filter rejected."""
    own: str
    teacher: str
    image: str
    """A data URI."""
    question: str = ""
    """What is asked and the options, where that differs from image to image."""


def make_gallery(run: RunResults, limit: int) -> list[Card]:
    """At most ``limit`` cards, wrong answers first, spread over folds, rounds, domains and classes.

    Answers are those of the last evaluated stage of each fold, chains those of every round.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _SHARES}
    for held_out in run.held_out:
        for row in _answers(run, held_out):
            found[row["verdict"]].append(row)
        for model in run.rounds(held_out):
            for row in _chains(run, held_out, model):
                found[row["verdict"]].append(row)
    chosen = []
    for name, share in _SHARES.items():
        chosen += _spread(found[name])[: round(limit * share)]
    return _with_images(run, chosen[:limit])


def _answers(run: RunResults, held_out: str) -> Iterable[dict[str, Any]]:
    model = run.models(held_out)[-1]
    predictions = run.predictions(held_out, model)
    direct = {row["id"]: row["prediction"] for row in _rows(predictions, "direct")}
    # The pathway that writes chains shows more, where it was evaluated.
    pathway = "reasoning" if "reasoning" in predictions["pathway"].unique().to_pylist() else "direct"
    for row in _rows(predictions, pathway):
        answer = f"answered {row['prediction'] or 'no class'}, it is {row['label']}"
        also = f"; directly {direct[row['id']]}" if pathway == "reasoning" and row["id"] in direct else ""
        yield {
            "id": row["id"],
            "label": row["label"],
            "domain": row["domain"],
            "verdict": RIGHT if row["correct"] else WRONG,
            "held_out": held_out,
            "stage": model,
            "note": answer + also,
            "own": row["text"],
        }


def _rows(predictions: pa.Table, pathway: str) -> list[dict[str, Any]]:
    return predictions.filter(pc.field("pathway") == pathway).to_pylist()


def _chains(run: RunResults, held_out: str, model: str) -> Iterable[dict[str, Any]]:
    columns = ["id", "label", "domain", "candidate", "text", "accepted", "reason"]
    for row in run.candidates(held_out, model).select(columns).to_pylist():
        yield {
            "id": row["id"],
            "label": row["label"],
            "domain": row["domain"],
            "verdict": ACCEPTED if row["accepted"] else REJECTED,
            "held_out": held_out,
            "stage": model,
            "note": f"draw {row['candidate'] + 1}"
            + ("" if row["accepted"] else f", {row['reason'].replace('_', ' ')}"),
            "own": row["text"],
        }


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in an order whose beginning has some of every fold, stage, domain, class and note."""
    seen: dict[tuple[str, ...], int] = defaultdict(int)
    ranked = []
    for place, row in enumerate(rows):
        # The place of a row within its class, then within its domain, decides; ties keep their order.
        group = (row["held_out"], row["stage"], row["domain"], row["label"])
        seen[group] += 1
        note = (*group, row["note"])
        seen[note] += 1
        ranked.append((seen[group], seen[note], place))
    return [rows[place] for _, _, place in sorted(ranked)]


def _with_images(run: RunResults, rows: list[dict[str, Any]]) -> list[Card]:
    root, data = run.root, run.config.data
    info = read_dataset_info(root, data.dataset)
    domains = [domain for domain in info.environments if any(row["domain"] == domain for row in rows)]
    if not domains:
        return []
    wanted = pa.array(sorted({row["id"] for row in rows}))
    index = sample_index(root, info, domains)
    index = index.filter(pc.is_in(index["id"], wanted))
    images = dict(zip(index["id"].to_pylist(), read_images(index), strict=True))
    try:
        chains = read_chains(root, info.name, data.chains, domains).filter(pc.field("accepted"))
        chains = chains.filter(pc.is_in(chains["id"], wanted))
        teacher = dict(zip(chains["id"].to_pylist(), chains["text"].to_pylist(), strict=True))
    except StorageError:
        teacher = {}  # labels only: the run had no teacher
    asked = {}
    if info.questions:
        asked = {
            row["id"]: f"{row['question']} {', '.join(row['options'])}"
            for row in index.select(["id", "question", "options"]).to_pylist()
        }
    uris = {name: _data_uri(name, image) for name, image in images.items()}
    return [
        Card(
            **row,
            teacher=teacher.get(row["id"], ""),
            image=uris[row["id"]],
            question=asked.get(row["id"], ""),
        )
        for row in rows
        if row["id"] in uris
    ]


def _data_uri(sample_id: str, data: bytes) -> str:
    """An image, made smaller where it is large, as a part of the page."""
    image = decode_image(sample_id, data)
    image.thumbnail((_LARGEST_PIXELS, _LARGEST_PIXELS))
    sink = io.BytesIO()
    # WebP is a third of a PNG and every browser shows it.
    image.save(sink, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
