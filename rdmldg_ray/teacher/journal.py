"""A teacher's answers on storage, each safe as soon as it is there.

::

    <chains of the teacher>/annotation.json                   who was asked what; written first
    <chains of the teacher>/_lock.json                        the lease of who adds answers now
    <chains of the teacher>/<domain>/part-00000-<unique>.parquet    TEACHER_ANSWER_SCHEMA
    <chains of the teacher>/_journal/<hash>-<unique>.json     one answer, until it is in a part

An answer was paid for, so it is written before anything else is done with it: after the process was killed
only requests that were still under way are made again. Answers are gathered into parts as they come. No name
is used twice, so that nothing is written over, whatever was removed and whoever else writes here.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.store import read_chain_file
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, CHAINS_FILE, PART, chains_location, of_version
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.runtime.lease import Lease
from rdmldg_ray.teacher.client import clean_text

TEACHER_ANSWER_SCHEMA = pa.schema(
    [
        *CHAIN_SCHEMA,
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("cost", pa.float64()),  # US dollars; null where the price is not known
        ("raw", pa.string()),  # what was written, where that is more than the chain in it; else null
    ]
)
_COUNTED = ["id", "candidate", "accepted", "reason", "prompt_tokens", "answer_tokens", "cost"]
_PART_NUMBER = re.compile(r"part-(\d+)")
_INT32_MAX = 2**31 - 1
_ROWS_PER_FLUSH = 256
_DESCRIPTION = "annotation.json"


@dataclass
class Progress:
    """What was drawn for a sample so far.

    Attributes:
        filtered: whether a filter refused to let the teacher see it, which it would do again.
    """

    candidates: int = 0
    accepted: bool = False
    filtered: bool = False


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
        self._lease = Lease(
            location=storage.join(self.location, "_lock.json"),
            what=f"chains of '{teacher}' for '{dataset}'",
            watch=f"rdmldg annotate {dataset} --teacher {teacher} --dry-run --storage {root}",
            console=plain_console(),
        )
        self._identity = identity
        self._samples: dict[str, Progress] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {domain: [] for domain in domains}
        self._journalled: list[str] = []
        self._parts = dict.fromkeys(domains, 0)
        self.prompt_tokens = self.answer_tokens = self.answers = 0
        self.cost = 0.0
        self._check_identity()
        self._read()

    @property
    def leftovers(self) -> bool:
        """Whether there are answers in the journal, of a call that was killed."""
        return bool(self._journalled)

    def progress(self, sample_id: str) -> Progress:
        """How far a sample is."""
        return self._samples.get(sample_id, Progress())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Answers may be added within the block; at its end they are in parts.

        Raises:
            LeaseHeldError: when another process adds answers of this name.
            RunFailedError: when another has taken over during the block.
        """
        with self._lease.held():
            storage.write_json(storage.join(self.location, _DESCRIPTION), self._identity)
            try:
                yield
            finally:
                self.flush()

    def add(self, domain: str, row: dict[str, Any]) -> None:
        """Write an answer, a row of TEACHER_ANSWER_SCHEMA; when this returns it is safe."""
        row = _storable(row)
        # First, so that it gets into a part even where the journal cannot be written.
        self._waiting[domain].append(row)
        # An id may hold characters and be longer than a file's name may.
        name = hashlib.sha256(f"{row['candidate']}/{row['id']}".encode()).hexdigest()
        entry = storage.join(self._journal(), f"{name}-{uuid.uuid4().hex[:8]}.json")
        storage.write_json(entry, {"domain": domain, "row": row})
        self._journalled.append(entry)
        self._count(row)
        if sum(map(len, self._waiting.values())) >= _ROWS_PER_FLUSH:
            self.flush()

    def flush(self) -> None:
        """Gather what is in the journal into parts."""
        for domain, rows in self._waiting.items():
            if rows:
                name = PART.format(self._parts[domain]).replace(".", f"-{uuid.uuid4().hex[:8]}.")
                part = storage.join(self.location, domain, name)
                storage.write_table(part, pa.Table.from_pylist(rows, schema=TEACHER_ANSWER_SCHEMA))
                self._parts[domain] += 1
                rows.clear()
        # Killed before this, the next one finds these answers in the parts.
        while self._journalled:
            storage.delete_file(self._journalled[-1])
            self._journalled.pop()

    def _journal(self) -> str:
        return storage.join(self.location, "_journal")

    def _check_identity(self) -> None:
        described = storage.join(self.location, _DESCRIPTION)
        if storage.exists(described):
            try:
                found = dict(storage.read_json(described))
            except storage.StorageError:
                raise
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"{described}: does not say who was asked ({error}); write "
                    f"{json.dumps(self._identity)} into it if that is whose answers these are, or give the "
                    "new answers another name (--name)"
                ) from None
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
            for file in of_version(storage.list_files(storage.join(self.location, domain), ".parquet"), ""):
                number = _PART_NUMBER.match(file.rsplit("/", 1)[-1])
                self._parts[domain] = max(self._parts[domain], int(number.group(1)) + 1 if number else 0)
                try:
                    for row in read_chain_file(file, _COUNTED).to_pylist():
                        seen.add((row["id"], row["candidate"]))
                        self._count(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{file}: cannot be read as a part with answers ({error}); if it is damaged, bring "
                        "back a copy or remove it: its samples are then asked about again"
                    ) from error
        for file in storage.list_files(self._journal(), ".json"):
            domain, row = self._read_entry(file)
            self._journalled.append(file)
            if (row["id"], row["candidate"]) not in seen:
                self._waiting[domain].append(row)
                self._count(row)

    def _read_entry(self, file: str) -> tuple[str, dict[str, Any]]:
        try:
            entry = storage.read_json(file)
            domain, row = entry["domain"], entry["row"]
            # As release 0.1.0 wrote it.
            row["accepted"] = row.pop("kept", row.get("accepted"))
            row = _storable(row)
            if domain not in self._waiting or None in (row["id"], row["candidate"], row["accepted"]):
                raise ValueError("no sample of this data set, or no verdict")
            pa.Table.from_pylist([{name: row[name] for name in _COUNTED}])
            pa.Table.from_pylist([row], schema=TEACHER_ANSWER_SCHEMA)
        except storage.StorageError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{file}: is no answer that was written whole ({error!r}); remove it, and its sample is "
                "asked about again"
            ) from None
        return domain, row

    def _count(self, row: dict[str, Any]) -> None:
        progress = self._samples.setdefault(row["id"], Progress())
        progress.candidates = max(progress.candidates, row["candidate"] + 1)
        progress.accepted |= row["accepted"]
        # What was refused before the teacher saw it has no tokens.
        progress.filtered |= row["reason"] == "content_filter" and not row["prompt_tokens"]
        self.answers += 1
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.answer_tokens += row["answer_tokens"] or 0
        self.cost += row["cost"] or 0.0


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its columns can hold; earlier releases journalled whatever a server sent."""
    row = {name: clean_text(value) if isinstance(value, str) else value for name, value in row.items()}
    for name in ("prompt_tokens", "answer_tokens"):
        row[name] = min(max(0, int(row[name] or 0)), _INT32_MAX)
    for name in ("text", "model"):
        row[name] = row[name] if isinstance(row[name], str) else str(row[name])
    return row
