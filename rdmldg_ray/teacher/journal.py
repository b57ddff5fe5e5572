"""A teacher's answers on storage, each safe as soon as it is there.

::

    <chains of the teacher>/annotation.json                   who was asked what; written first
    <chains of the teacher>/<domain>/part-00000.parquet       TEACHER_ANSWER_SCHEMA
    <chains of the teacher>/_journal/<hash>.json              one answer, until it is in a part

An answer was paid for, so it is written before anything else is done with it: after the process was killed
only requests that were still under way are made again. Answers are gathered into parts as they come.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.store import read_chain_file
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, CHAINS_FILE, PART, chains_location, of_version

TEACHER_ANSWER_SCHEMA = pa.schema(
    [
        *CHAIN_SCHEMA,
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("cost", pa.float64()),  # US dollars; null where the price is not known
    ]
)
_COUNTED = ["id", "candidate", "accepted", "prompt_tokens", "answer_tokens", "cost"]
_ROWS_PER_FLUSH = 256


@dataclass
class Progress:
    """What was drawn for a sample so far."""

    candidates: int = 0
    accepted: bool = False


class AnswerStore:
    """The answers of one teacher. One thread at a time may use it.

    Args:
        identity: what must be the same whenever answers are added: who is asked, and with what prompt.

    Raises:
        ValueError: when the teacher's chains are others' than such answers.
    """

    def __init__(
        self, root: str, dataset: str, teacher: str, domains: Sequence[str], identity: dict[str, Any]
    ):
        self.location = chains_location(root, dataset, teacher)
        self._identity = identity
        self._samples: dict[str, Progress] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {domain: [] for domain in domains}
        self._parts = dict.fromkeys(domains, 0)
        self.prompt_tokens = self.answer_tokens = self.answers = 0
        self.cost = 0.0
        self._check_identity()
        self._read()

    def progress(self, sample_id: str) -> Progress:
        """How far a sample is."""
        return self._samples.get(sample_id, Progress())

    def begin(self) -> None:
        """Say whose answers these are, before the first."""
        storage.write_json(storage.join(self.location, "annotation.json"), self._identity)

    def add(self, domain: str, row: dict[str, Any]) -> None:
        """Write an answer, a row of TEACHER_ANSWER_SCHEMA; when this returns it is safe."""
        # An id may hold characters and be longer than a file's name may.
        name = hashlib.sha256(f"{row['candidate']}/{row['id']}".encode()).hexdigest()
        storage.write_json(storage.join(self._journal(), f"{name}.json"), {"domain": domain, "row": row})
        self._waiting[domain].append(row)
        self._count(row)
        if sum(map(len, self._waiting.values())) >= _ROWS_PER_FLUSH:
            self.flush()

    def flush(self) -> None:
        """Gather what is in the journal into parts."""
        for domain, rows in self._waiting.items():
            if rows:
                part = storage.join(self.location, domain, PART.format(self._parts[domain]))
                storage.write_table(part, pa.Table.from_pylist(rows, schema=TEACHER_ANSWER_SCHEMA))
                self._parts[domain] += 1
                rows.clear()
        # Killed before this, the next one finds these answers in the parts.
        storage.delete_folder(self._journal())

    def _journal(self) -> str:
        return storage.join(self.location, "_journal")

    def _check_identity(self) -> None:
        described = storage.join(self.location, "annotation.json")
        if storage.exists(described):
            found = storage.read_json(described)
            if found != self._identity:
                differing = [key for key, value in self._identity.items() if found.get(key) != value]
                raise ValueError(
                    f"{described}: these answers were made otherwise: "
                    + ", ".join(f"{key} was {found.get(key)!r}" for key in differing)
                    + "; ask as then, or give the new answers another name (--name)"
                )
        if storage.list_files(self.location, ".parquet") and (
            not storage.exists(described) or storage.exists(storage.join(self.location, CHAINS_FILE))
        ):
            raise ValueError(
                f"{self.location}: holds chains that no teacher was asked for here; give the answers "
                "another name (--name)"
            )

    def _read(self) -> None:
        seen = set()
        for domain in self._parts:
            files = of_version(storage.list_files(storage.join(self.location, domain), ".parquet"), "")
            self._parts[domain] = len(files)
            for file in files:
                for row in read_chain_file(file, _COUNTED).to_pylist():
                    seen.add((row["id"], row["candidate"]))
                    self._count(row)
        for entry in self._journal_entries():
            row = entry["row"]
            if (row["id"], row["candidate"]) not in seen:
                self._waiting[entry["domain"]].append(row)
                self._count(row)

    def _journal_entries(self) -> Iterator[dict[str, Any]]:
        for file in storage.list_files(self._journal(), ".json"):
            entry = storage.read_json(file)
            row = entry["row"]
            # As release 0.1.0 wrote it.
            row["accepted"] = row.pop("kept", row.get("accepted"))
            yield entry

    def _count(self, row: dict[str, Any]) -> None:
        progress = self._samples.setdefault(row["id"], Progress())
        progress.candidates = max(progress.candidates, row["candidate"] + 1)
        progress.accepted |= row["accepted"]
        self.answers += 1
        self.prompt_tokens += row["prompt_tokens"]
        self.answer_tokens += row["answer_tokens"]
        self.cost += row["cost"] or 0.0
