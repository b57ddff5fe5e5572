"""From the candidates of a round, as they lie on storage, to the chains that are trained on.

Part by part, so that memory holds a few numbers for each image and never the chains. The same
function ends a round and filters it anew with other thresholds.
"""

import sys
from collections import Counter
from typing import Any

import pyarrow as pa

from rdmldg_ray.config.schema import SarrConfig
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA, judged, read_candidates
from rdmldg_ray.sarr.filter import BAD_IMAGE, is_hopeless
from rdmldg_ray.sarr.scores import Agreement
from rdmldg_ray.storage import delete_folder, join, list_files, write_table

# Below a round's folder.
CANDIDATES_FOLDER = "candidates"
SELECTED_FOLDER = "selected"
REJECTIONS_FILE = "rejections.parquet"

REJECTION_SCHEMA = pa.schema(
    [
        ("domain", pa.string()),
        ("label", pa.string()),
        ("reason", pa.string()),  # null for accepted candidates
        ("candidates", pa.int64()),
    ]
)

# The score by which the best of an image's accepted chains is chosen, and its sign: the largest wins.
_BEST_BY = {
    "logprob": ("mean_logprob", 1),
    "num_tokens": ("num_tokens", -1),
    "repetition": ("repetition", -1),
}


def select_chains(drawn: str, selected: str, class_names: list[str], config: SarrConfig) -> dict[str, Any]:
    """Judge the stored candidates of a round and write the best accepted one of each image.

    Leaves ``candidates/`` (with agreement and verdict), ``selected/`` and ``rejections.parquet`` below
    ``selected``.

    Args:
        drawn: the round's folder with ``candidates/``.
        selected: the round's folder that is written, which may be the same.

    Returns:
        The round's summary: counts of images, candidates and reasons, and the price of an accepted chain.
    """
    parts = list_files(join(drawn, CANDIDATES_FOLDER), ".parquet")
    agreement = Agreement()
    for part in parts:
        columns = read_candidates(part, ["id", "conclusion"])
        agreement.count(columns["id"].to_pylist(), columns["conclusion"].to_pylist())

    score, sign = _BEST_BY[config.best_by]
    best: dict[str, tuple[float, int]] = {}  # by image: the score, and minus the candidate's number
    counts: Counter[tuple[str, str, str | None]] = Counter()
    counted: Counter[str] = Counter()
    hopeless: set[str] = set()
    tokens = 0
    for number, part in enumerate(parts):
        table = read_candidates(part)
        rows = table.to_pylist()
        for row in rows:
            row["id"] = sys.intern(row["id"])  # one string for all that is counted by it
            row["agreement"] = agreement.share(row["id"], row["conclusion"])
            row |= judged(row, class_names, config.filter)
            counts[row["domain"], row["label"], row["reason"]] += 1
            counted[row["id"]] += 1
            tokens += row["num_tokens"]
            if is_hopeless(row, config.filter):
                hopeless.add(row["id"])
            if row["accepted"]:
                place = (sign * row[score], -row["candidate"])
                best[row["id"]] = max(place, best.get(row["id"], place))
        write_table(
            _part(join(selected, CANDIDATES_FOLDER), number), pa.Table.from_pylist(rows, table.schema)
        )

    _write_selected(selected, len(parts), best)
    _write_rejections(selected, counts)
    reasons: Counter[str | None] = Counter()
    for (_, _, reason), count in counts.items():
        reasons[reason] += count
    accepted = reasons.pop(None, 0)
    done = hopeless | best.keys()
    draws_left = [i for i, count in counted.items() if count < config.max_attempts and i not in done]
    return {
        "images": len(counted),
        "images_with_chain": len(best),
        "draws_left": len(draws_left),  # images without a chain that a stricter filter leaves undrawn
        "bad_images": reasons.get(BAD_IMAGE, 0),
        "candidates": counted.total(),
        "accepted": accepted,
        "tokens": tokens,
        "tokens_per_selected": round(tokens / len(best), 1) if best else None,
        "rejected": dict(reasons.most_common()),
    }


def _write_selected(target: str, num_parts: int, best: dict[str, tuple[float, int]]) -> None:
    delete_folder(join(target, SELECTED_FOLDER))  # what a filter with other bounds left
    for number in range(num_parts):
        table = read_candidates(_part(join(target, CANDIDATES_FOLDER), number))
        pairs = zip(table["id"].to_pylist(), table["candidate"].to_pylist(), strict=True)
        chosen = [sample_id in best and best[sample_id][1] == -candidate for sample_id, candidate in pairs]
        write_table(_part(join(target, SELECTED_FOLDER), number), table.filter(pa.array(chosen, pa.bool_())))


def _write_rejections(target: str, counts: Counter[tuple[str, str, str | None]]) -> None:
    ordered = sorted(counts.items(), key=lambda item: (*item[0][:2], item[0][2] or ""))
    rows = [dict(zip(REJECTION_SCHEMA.names, (*key, count), strict=True)) for key, count in ordered]
    write_table(join(target, REJECTIONS_FILE), pa.Table.from_pylist(rows, REJECTION_SCHEMA))


def _part(folder: str, number: int) -> str:
    return join(folder, f"part-{number:05d}.parquet")


def write_candidates(round_folder: str, number: int, candidates: pa.Table) -> None:
    """Write the candidates of one batch, in ``CANDIDATE_SCHEMA`` and whatever columns come after."""
    assert candidates.column_names[: len(CANDIDATE_SCHEMA)] == CANDIDATE_SCHEMA.names
    write_table(_part(join(round_folder, CANDIDATES_FOLDER), number), candidates)
