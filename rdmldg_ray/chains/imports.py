"""Chains in, from ShareGPT's JSONL or from Parquet, each checked against the data set.

What ``chains.export`` wrote comes back equal. Chains that were made elsewhere need less: a JSONL line with
``messages`` (or ``conversations``) and ``images``, or a Parquet row with ``id`` and ``text``.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.format import IMAGE_MARK, ChainFormatError, find_alike, judge_text, parse_chain
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.chains.store import chain_files, write_chains
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import (
    CHAIN_SCHEMA,
    DatasetInfo,
    chains_location,
    question_columns,
    read_dataset_info,
)

_PROBLEMS_SHOWN = 20
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass
class _Import:
    """Rows read so far, checked against the data set, and what is wrong with others."""

    info: DatasetInfo
    samples: Mapping[str, Mapping[str, Any]]
    teacher: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    places: dict[tuple[str, int], str] = field(default_factory=dict)
    candidates: Counter[str] = field(default_factory=Counter)

    def add(self, place: str, read: Callable[[], Mapping[str, Any]]) -> None:
        """Check one row and take it, or note what is wrong with it; ``place`` is its file and line."""
        try:
            row = self._checked(read())
        except (ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{place}: {error}")
            return
        first = self.places.setdefault((row["id"], row["candidate"]), place)
        if first != place:
            self.problems.append(
                f"{place}: candidate {row['candidate']} of {row['id']} is also in {first}; remove one of "
                "them, or give it another number"
            )
        self.candidates[row["id"]] = max(self.candidates[row["id"]], row["candidate"] + 1)
        self.rows.append(row)

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        sample = self._sample(given)
        row: dict[str, Any] = {name: given.get(name) for name in CHAIN_SCHEMA.names}
        if "kept" in given and "accepted" not in given:  # as release 0.1.0 exported it
            row["accepted"] = given["kept"]
        row |= {"id": sample["id"], "model": row["model"] or self.teacher}
        if row["image_sha256"] not in (None, sample["sha256"]):
            raise ValueError(
                "the chain was written for another image than the data set has now (image_sha256); write it "
                "anew, remove it, or remove the field where it holds for this image too"
            )
        row["image_sha256"] = sample["sha256"]
        if row["candidate"] is None:
            row["candidate"] = self.candidates[sample["id"]]
        text, label, accepted = row["text"], sample["label"], row["accepted"]
        _check_types(row)
        if accepted is False:
            # A rejected chain may be of any form; it is never trained on.
            row["reason"] = row["reason"] or "rejected"
            return row
        try:
            conclusion = parse_chain(text).conclusion
        except ChainFormatError as error:
            raise ValueError(f"{error}; mend the chain, remove it, or set its 'accepted' to false") from None
        if row["conclusion"] not in (None, conclusion):
            raise ValueError(
                f"the field 'conclusion' is '{row['conclusion']}', but the chain concludes '{conclusion}'; "
                "correct or remove the field"
            )
        verdict = judge_text(text, label, question_of(sample, self.info.classes).options)
        if accepted and not verdict.accepted:
            raise ValueError(
                f"the chain is marked as accepted, but concludes '{conclusion}' where the label is '{label}'"
                "; set its 'accepted' to false, or remove the field"
            )
        return {**row, "conclusion": conclusion, "accepted": verdict.accepted, "reason": verdict.reason}

    def _sample(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if given.get("id") is not None:
            if given["id"] in self.samples:
                return self.samples[given["id"]]
            raise ValueError(f"no sample '{given['id']}' in the data set {self.info.name}; correct the id")
        # Made elsewhere, a chain knows only its image's path, of which the end is the same here.
        parts = str(given["image"]).split("/")
        for start in range(len(parts)):
            sample_id = "/".join([self.info.name, *parts[start:]])
            if sample_id in self.samples:
                return self.samples[sample_id]
        raise ValueError(
            f"no sample of the data set {self.info.name} has the image '{given['image']}'; give an 'id', or "
            "a path that ends with <domain>/<class>/<file>"
        )


def import_chains(
    location: str, root: str, dataset: str, teacher: str, replace: bool = False
) -> Counter[str]:
    """Check chains from a file or a folder, and write them as a teacher's; nothing is written if one is bad.

    A chain without ``accepted`` is accepted when its conclusion is its sample's label.

    Args:
        location: a ``.jsonl`` or ``.parquet`` file, or a folder with such files.
        teacher: the name that the chains get, as ``data.chains`` takes it.
        replace: whether chains that the teacher has already may be replaced. They stay until all of the
            new ones are written. Answers that were paid for and are not chains yet are never replaced.

    Returns:
        How many are accepted (under ``accepted``), and how many rejected, by reason.

    Raises:
        ValueError: with one line for each bad chain: file, line, what is wrong and the remedy.
    """
    there = chains_location(root, dataset, teacher)
    info = read_dataset_info(root, dataset)
    if storage.list_files(storage.join(there, "_journal")):
        raise ValueError(
            f"{there}: holds answers of a teacher from an annotation that did not end; run the annotation "
            "again, which makes chains of them, or choose another name"
        )
    if chain_files(root, dataset, teacher, info.environments) and not replace:
        raise ValueError(f"{there}: holds chains already; choose another name, or --replace them")
    if not info.questions and (alike := find_alike(info.classes)):
        raise ValueError(
            f"{location}: not imported: the classes '{alike[0]}' and '{alike[1]}' of the data set {dataset} "
            "are one when conclusions are compared; rename one of its folders, and ingest it again"
        )
    index = sample_index(root, info, info.environments)
    columns = ["id", "label", "domain", "sha256", *question_columns(index)]
    known = index.select(columns).to_pylist()
    found = _Import(info, {row["id"]: row for row in known}, teacher)
    for file in _chain_files(location):
        for place, read in _jsonl_rows(file) if file.endswith(".jsonl") else _parquet_rows(file):
            found.add(place, read)
    if found.problems:
        more = len(found.problems) - _PROBLEMS_SHOWN
        lines = found.problems[:_PROBLEMS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        raise ValueError("\n".join([f"{location}: not imported:", *lines]))
    if not found.rows:
        raise ValueError(f"{location}: there are no chains here; correct the path")
    rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found.rows:
        rows_of[found.samples[row["id"]]["domain"]].append(row)
    chains = {domain: _as_table(rows, found.places) for domain, rows in rows_of.items()}
    write_chains(root, dataset, teacher, chains)
    return Counter(row["reason"] or "accepted" for row in found.rows)


def _as_table(rows: list[dict[str, Any]], places: Mapping[tuple[str, int], str]) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)
    except (ValueError, OverflowError) as error:
        if len(rows) == 1:
            place = places[rows[0]["id"], rows[0]["candidate"]]
            raise ValueError(f"{place}: cannot be written ({error}); correct the row") from None
    for row in rows:
        _as_table([row], places)
    raise AssertionError("one of the rows is at fault")


def _chain_files(location: str) -> list[str]:
    if storage.is_file(location):
        files = [location]
    else:
        files = [file for file in storage.list_files(location) if file.endswith((".jsonl", ".parquet"))]
    if not files or not files[0].endswith((".jsonl", ".parquet")):
        raise ValueError(f"{location}: neither a .jsonl or .parquet file nor a folder of such files")
    return files


Rows = Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]


def _jsonl_rows(file: str) -> Rows:
    for number, line in enumerate(storage.read_bytes(file).splitlines(), 1):
        if line.strip():
            yield f"{file}, line {number}", partial(_from_sharegpt, line)


def _parquet_rows(file: str) -> Rows:
    with storage.open_parquet(file) as parquet:
        names = set(parquet.schema_arrow.names)
        if not {"id", "text"} <= names:
            raise ValueError(f"{file}: has no columns 'id' and 'text'; it has: {', '.join(sorted(names))}")
        table = parquet.read(columns=[name for name in CHAIN_SCHEMA.names if name in names])
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{file}, row {number}", partial(dict, row)


def _from_sharegpt(line: bytes) -> Mapping[str, Any]:
    """A line's fields, with the assistant's turn as ``text`` and the image's path as ``image``."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); write one object on each line") from None
    if not isinstance(value, dict):
        raise ValueError(f"not an object but a {type(value).__name__}; write one object on each line")
    turns = [_turn(turn) for turn in value.get("messages") or value.get("conversations") or ()]
    turns = [turn for turn in turns if turn[0] != "system"]
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise ValueError(
            "'messages' (or 'conversations') is not one question and one answer; write a turn of the user "
            "(human) and a turn of the assistant (gpt)"
        )
    (_, question), (_, answer) = turns
    images = value.get("images")
    if not isinstance(images, list) or len(images) != 1 or question.count(IMAGE_MARK) != 1:
        raise ValueError(
            f"not one image; list one path in 'images' and write {IMAGE_MARK} once in the question"
        )
    return {**value, "text": answer, "image": images[0]}


def _turn(turn: Any) -> tuple[str, str]:
    role = turn["role"] if "role" in turn else turn["from"]
    content = turn["content"] if "role" in turn else turn["value"]
    if role not in _ROLES or not isinstance(content, str):
        raise ValueError(f"a turn of '{role}' is not known, or has no text; known are {', '.join(_ROLES)}")
    return _ROLES[role], content


def _check_types(row: Mapping[str, Any]) -> None:
    kinds = {"string": str, "int32": int, "bool": bool}
    for name in CHAIN_SCHEMA.names:
        kind = kinds[str(CHAIN_SCHEMA.field(name).type)]
        if row[name] is not None and type(row[name]) is not kind:
            raise ValueError(f"the field '{name}' is {row[name]!r}, which is no {kind.__name__}; correct it")
    if row["text"] is None:
        raise ValueError("the chain has no text; add it, or remove the row")
