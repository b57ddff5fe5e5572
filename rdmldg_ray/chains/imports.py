"""Chains in, from JSON or Parquet, each checked against the data set.

What ``chains.export`` wrote comes back equal. Chains that were made elsewhere need less: a question and an
answer in a form of ``_conversation``, or ``text``; and the sample's ``id``, or an image's path that ends as
the sample's does.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.chains.coverage import uneven_classes
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
_SUFFIXES = (".jsonl", ".parquet", ".json")
# Where question and answer stand in a row that has no list of turns: TRL, Alpaca's form, ms-swift.
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("query", "response"))
_CONVERSATION = ("messages", "conversations", "input", *(name for pair in _PAIRS for name in pair))
_IMAGES = ("images", "image")
_IMAGE_PARTS = ("image", "image_url", "input_image")
# As long as 4,096 tokens, the most that a training takes by default, at four characters a token.
_LONG_CHARACTERS = 4 * 4096
_NUMBERS = range(2**31)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_log = logging.getLogger(__name__)


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
        except RecursionError:
            self.problems.append(f"{place}: is nested too deeply to be read; remove it")
            return
        except ValueError as error:
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

    def warnings(self) -> Iterator[str]:
        """What a training on these chains will meet."""
        accepted = {row["id"]: row for row in self.rows if row["accepted"]}
        uneven = uneven_classes((row["label"], name in accepted) for name, row in self.samples.items())
        if uneven:
            yield uneven
        long = [name for name, row in accepted.items() if len(row["text"]) > _LONG_CHARACTERS]
        if long:
            yield (
                f"{len(long)} accepted chains have more than {_LONG_CHARACTERS} characters, such as that of "
                f"{long[0]}; a training ends at one that is longer than model.max_length: raise it, or set "
                "their 'accepted' to false"
            )

    def _sample(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        sample_id, image = given.get("id"), given.get("image")
        if isinstance(sample_id, str) and sample_id in self.samples:
            return self.samples[sample_id]
        ours = isinstance(sample_id, str) and sample_id.startswith(f"{self.info.name}/")
        if ours or (sample_id is not None and image is None):
            raise ValueError(f"no sample {sample_id!r} in the data set {self.info.name}; correct the id")
        if image is None:
            raise ValueError("neither an 'id' nor an image's path; add one of them")
        # Made elsewhere, a chain knows only its image's path, of which the end is the same here.
        parts = image.replace("\\", "/").split("/") if isinstance(image, str) else []
        for start in range(len(parts)):
            found = "/".join([self.info.name, *parts[start:]])
            if found in self.samples:
                return self.samples[found]
        shown = image if isinstance(image, str) and len(image) <= 200 else f"{str(image)[:200]}..."
        raise ValueError(
            f"no sample of the data set {self.info.name} has the image '{shown}'; give an 'id', or "
            "a path that ends with <domain>/<class>/<file>"
        )


def import_chains(
    location: str, root: str, dataset: str, teacher: str, replace: bool = False
) -> Counter[str]:
    """Check chains from a file or a folder, and write them as a teacher's; nothing is written if one is bad.

    A chain without ``accepted`` is accepted when its conclusion is its sample's label.

    Args:
        location: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a folder with such files.
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
    if not replace and chain_files(root, dataset, teacher, info.environments):
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
        for place, read in _parquet_rows(file) if file.lower().endswith(".parquet") else _json_rows(file):
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
    chains = {domain: pa.Table.from_pylist(rows, CHAIN_SCHEMA) for domain, rows in rows_of.items()}
    write_chains(root, dataset, teacher, chains)
    for warning in found.warnings():
        _log.warning("%s: %s", there, warning)
    return Counter(row["reason"] or "accepted" for row in found.rows)


def _chain_files(location: str) -> list[str]:
    if not storage.exists(location):
        raise ValueError(f"{location}: there is no such file or folder; correct the path")
    if storage.is_file(location):
        files = [location] if location.lower().endswith(_SUFFIXES) else []
    else:
        listed = storage.list_files(location)
        files = [file for file in listed if file.lower().endswith((".jsonl", ".parquet"))]
        # Beside such files those in JSON describe them, as dataset_info.json does for LLaMA-Factory.
        files = files or [file for file in listed if re.search(r"(?<!/dataset_info)\.json$", file.lower())]
    if not files:
        raise ValueError(
            f"{location}: neither a .jsonl, .json or .parquet file nor a folder of such files; correct the "
            "path"
        )
    return files


Rows = Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]


def _json_rows(file: str) -> Rows:
    """The rows of an array, or of lines that each hold one."""
    data = storage.read_bytes(file)
    if not file.lower().endswith(".jsonl"):
        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError(f"{file}: is nested too deeply to be read; write a list of rows") from None
        except ValueError as error:
            if data.lstrip().startswith(b"["):
                raise ValueError(f"{file}: not JSON ({error}); write a list of rows") from None
        else:
            if not isinstance(value, list):
                raise ValueError(
                    f"{file}: not a list of rows but {_kind(value)}; give the file with the rows"
                )
            for number, row in enumerate(value, 1):
                yield f"{file}, row {number}", partial(_conversation, row)
            return
    for number, line in enumerate(_in_utf8(file, data).splitlines(), 1):
        if line.strip():
            yield f"{file}, line {number}", partial(_from_line, line)


def _in_utf8(file: str, data: bytes) -> bytes:
    """Lines of JSON in UTF-8, as Windows' tools write them in UTF-16."""
    encoding = json.detect_encoding(data)
    if encoding.startswith("utf-8"):
        return data  # a line that is not in it is told by its number
    try:
        return data.decode(encoding).encode()
    except UnicodeError as error:
        raise ValueError(
            f"{file}: is neither in UTF-8 nor in {encoding} ({error}); save it in UTF-8"
        ) from None


def _parquet_rows(file: str) -> Rows:
    with storage.open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        read: Callable[[Any], Mapping[str, Any]] = dict
        paths = [field.name for field in parquet.schema_arrow if pa.types.is_string(field.type)]
        wanted: Sequence[str] = (*CHAIN_SCHEMA.names, *({"image"} & set(paths)))
        if not {"id", "text"} <= set(names):
            if not set(_CONVERSATION) & set(names):
                raise ValueError(
                    f"{file}: has no columns 'id' and 'text', and none with conversations; it has: "
                    f"{', '.join(sorted(names))}"
                )
            read, wanted = _conversation, (*CHAIN_SCHEMA.names, *_CONVERSATION, *_IMAGES)
        try:
            rows = parquet.read(columns=[name for name in names if name in wanted]).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: holds text that is not UTF-8 ({error}); write it again") from None
    for number, row in enumerate(rows, 1):
        yield f"{file}, row {number}", partial(read, row)


def _from_line(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); write one object on each line") from None
    return _conversation(value)


def _conversation(value: Any) -> Mapping[str, Any]:
    """A row's fields, with the answer as ``text`` and the image's path as ``image``.

    A row has ``messages`` or ``conversations`` (ShareGPT, LLaVA, InternVL, OpenAI), or a question and an
    answer under two names (TRL, Alpaca, ms-swift); and its image in ``images``, ``image``, or a part of the
    question.
    """
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {_kind(value)}; write one object on each line")
    turns = _turns(value)
    if [role for role, _, _ in turns] != ["user", "assistant"]:
        raise ValueError(
            "'messages' (or 'conversations') is not one question and one answer; write a turn of the user "
            "(human) and a turn of the assistant (gpt)"
        )
    (_, question, shown), (_, answer, _) = turns
    listed = next((value[name] for name in _IMAGES if value.get(name) is not None), None)
    images = [path for path in map(_path, listed if isinstance(listed, list) else [listed]) if path]
    images = images or [path for path in map(_path, shown) if path]
    marks = question.count(IMAGE_MARK) + len(shown)
    # Who keeps question and answer apart often leaves it to the reader to put the image first.
    paired = not ("messages" in value or "conversations" in value)
    if len(images) > 1 or marks > 1 or not (marks or paired) or not (images or value.get("id") is not None):
        raise ValueError(
            f"not one image; list one path in 'images' and write {IMAGE_MARK} once in the question"
        )
    return {**value, "text": answer, "image": images[0] if images else None}


def _turns(value: Mapping[str, Any]) -> list[tuple[str, str, list[Any]]]:
    """Role, text and images of each turn but the system's."""
    given = next((value[name] for name in ("messages", "conversations") if value.get(name) is not None), None)
    if given is None:
        question, answer = next(
            (pair for pair in _PAIRS if all(value.get(name) is not None for name in pair)), (None, None)
        )
        given = []
        for name, role in ((question, "user"), (answer, "assistant")):
            content = value.get(name) if name else ()
            if isinstance(content, str):
                more = value.get("input") if name == "instruction" else None
                text = f"{content}\n{more}" if isinstance(more, str) and more else content
                content = [{"role": role, "content": text}]
            given += content if isinstance(content, list) else []
    if not isinstance(given, list):
        raise ValueError(f"'messages' (or 'conversations') is {_kind(given)}; write a list of turns")
    turns = [_turn(turn) for turn in given]
    return [turn for turn in turns if turn[0] != "system"]


def _turn(turn: Any) -> tuple[str, str, list[Any]]:
    if not isinstance(turn, dict):
        raise ValueError(f"a turn is {_kind(turn)}; write an object with 'role' and 'content'")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    texts: list[Any] = [content]
    images: list[Any] = []
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
        images = [part for part in parts if part.get("type") in _IMAGE_PARTS]
        texts = [part.get("text") for part in parts if part.get("type") not in _IMAGE_PARTS]
    if not isinstance(role, str) or role not in _ROLES or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a turn of '{role}' is not known, or has no text; known are {', '.join(_ROLES)}")
    return _ROLES[role], "".join(texts), images


def _path(image: Any) -> str | None:
    """The path of an image that is given as such, or as an object that holds it; None without one."""
    if isinstance(image, dict):
        for key in ("path", "image", "image_url", "url"):
            if path := _path(image.get(key)):
                return path
    return image if isinstance(image, str) and image and not image.startswith("data:") else None


def _kind(value: Any) -> str:
    name = {"dict": "object", "NoneType": "null", "str": "text"}.get(
        type(value).__name__, type(value).__name__
    )
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _check_types(row: Mapping[str, Any]) -> None:
    kinds = {"string": str, "int32": int, "bool": bool}
    for name in CHAIN_SCHEMA.names:
        value, kind = row[name], kinds[str(CHAIN_SCHEMA.field(name).type)]
        if value is None:
            continue
        if type(value) is not kind:
            raise ValueError(f"the field '{name}' is {value!r}, which is no {kind.__name__}; correct it")
        if kind is int and value not in _NUMBERS:
            raise ValueError(f"the field '{name}' is {value}, which is out of range; number from 0 on")
        if isinstance(value, str) and not _is_unicode(value):
            raise ValueError(f"the field '{name}' holds half a character (a lone surrogate); correct it")
    if row["text"] is None:
        raise ValueError("the chain has no text; add it, or remove the row")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
