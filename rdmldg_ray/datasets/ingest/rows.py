"""Rows of image, question, options, answer and domain, as a user's file has them.

The file is JSONL, CSV or Parquet with these columns; images lie beside it, by paths that are relative to it.
Visual question answering and visual entailment have the same form: for entailment the question is the
statement, and the options are what its relation to the image may be.
"""

import csv
import hashlib
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rdmldg_ray import storage
from rdmldg_ray.chains.format import find_alike, find_listed, find_mark, match_class
from rdmldg_ray.datasets.ingest.names import class_fault, domain_fault, is_encodable

COLUMNS = ("image", "question", "options", "answer", "domain")
ENDINGS = (".jsonl", ".csv", ".parquet")
# Beyond it a question alone fills what a model reads.
_MAX_QUESTION_CHARACTERS = 20_000
# Between the options in a cell of a CSV file.
_BETWEEN = "|"


class RowError(ValueError):
    """A row is no sample. ``reason`` is a short machine-readable word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """A question about an image, with its answer.

    Attributes:
        image: path, with single slashes.
        answer: one of the options, letter by letter.
    """

    image: str
    question: str
    options: tuple[str, ...]
    answer: str
    domain: str

    def sample_id(self, dataset: str) -> str:
        """The stable id: where the image is, and a hash of what is asked about it.

        It does not depend on the row's place in the file, nor on other questions about the image.
        """
        asked = json.dumps([self.question, self.options], ensure_ascii=False)
        start, ending = posixpath.splitext(self.image)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return f"{dataset}/{self.domain}/{start}-{digest}{ending}"


def read_rows(location: str) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    """The rows of a file, each with its place ("line 3") for messages; one that is no row as an error.

    Raises:
        ValueError: for a file of another kind or encoding, or one that lacks a column.
    """
    ending = location.lower()
    if ending.endswith(".parquet"):
        return _parquet_rows(location)
    assert ending.endswith(ENDINGS), location
    try:
        text = storage.read_bytes(location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: is not in UTF-8 ({error}); save it so") from None
    return _csv_rows(location, text) if ending.endswith(".csv") else _jsonl_rows(text)


def check_row(given: Mapping[str, Any]) -> Row:
    """Check a row, and write its texts with single spaces and its answer as among the options.

    Raises:
        RowError: with ``reason`` one of ``missing``, ``no_text``, ``options``, ``answer``, ``marks``,
            ``too_long``, ``domain`` and ``path``; the message names the remedy.
    """
    options = given.get("options")
    if options is None or not isinstance(options, list | tuple) or len(options) < 2:
        raise RowError("options", f"'options' is {options!r}; give a list of at least two texts")
    texts = {name: _text(name, given.get(name)) for name in COLUMNS if name != "options"}
    shown = tuple(_text("options", option) for option in options)
    question = texts["question"]
    if mark := find_mark(question):
        raise RowError("marks", f"'question' has {mark}, which prompts and chains use; take it out")
    if len(question) > _MAX_QUESTION_CHARACTERS:
        raise RowError(
            "too_long",
            f"'question' has {len(question)} characters; shorten it to {_MAX_QUESTION_CHARACTERS}",
        )
    for option in shown:
        if fault := class_fault(option):
            reason = "marks" if find_mark(option) else "options"
            raise RowError(reason, f"'options' has '{option[:80]}', which {fault}; word it otherwise")
    if alike := find_alike(shown):
        raise RowError(
            "options",
            f"the options {' and '.join(alike)} are not told apart by letters and digits; reword them",
        )
    if listed := find_listed(shown):
        raise RowError(
            "options",
            f"the option '{listed[1]}' reads as a list of several in a prompt, and '{listed[0]}' is another "
            "option; reword them",
        )
    place = match_class(texts["answer"], shown)
    if place is None:
        raise RowError(
            "answer",
            f"the answer '{texts['answer']}' is not among the options: {', '.join(shown)}; correct it",
        )
    if fault := domain_fault(texts["domain"]):
        raise RowError("domain", f"the name of the domain '{texts['domain'][:80]}' {fault}; give it another")
    image = posixpath.normpath(texts["image"])
    if image.startswith(("/", "..")) or "\\" in image or "://" in texts["image"]:
        raise RowError(
            "path", f"the image's path '{texts['image']}' leads elsewhere; make it relative to this file"
        )
    return Row(
        image=image,
        question=texts["question"],
        options=shown,
        answer=shown[place],
        domain=texts["domain"],
    )


def _text(name: str, value: Any) -> str:
    if value is None or value == "":
        raise RowError("missing", f"'{name}' is empty; fill it in, or remove the row")
    if not isinstance(value, str) or not value.strip():
        raise RowError("no_text", f"'{name}' has {value!r}, which is no text; write it in quotes")
    if not is_encodable(value):
        raise RowError("no_text", f"'{name}' has {ascii(value)[:80]}, with half of a character; correct it")
    # A path may have any spaces.
    return value if name == "image" else " ".join(value.split())


def _jsonl_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"it is a {type(value).__name__}")
        except (ValueError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            message = f"is no JSON object ({why}); write one on each line"
            yield f"line {number}", RowError("no_object", message)
        else:
            yield f"line {number}", value


def _csv_rows(location: str, text: str) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    _check_columns(location, reader.fieldnames or ())
    rows = iter(reader)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{location}, line {reader.line_num}: is no CSV ({error}); correct it") from None
        if row is None:
            return
        options = row["options"].split(_BETWEEN) if row["options"] else None
        yield f"line {reader.line_num}", {**row, "options": options}


def _parquet_rows(location: str) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    with storage.open_parquet(location) as parquet:
        _check_columns(location, parquet.schema_arrow.names)
        number = 0
        for batch in parquet.iter_batches(columns=list(COLUMNS)):
            try:
                given = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{location}: has a text that is not in UTF-8 after row {number} ({error}); save it so"
                ) from None
            for row in given:
                number += 1
                yield f"row {number}", row


def _check_columns(location: str, found: Any) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise ValueError(
            f"{location}: has no column {', '.join(missing)}; it has: {', '.join(found) or 'none'}; add it"
        )
