"""Chains out: ShareGPT's JSONL, which LLaMA-Factory reads, and a folder for Hugging Face datasets.

::

    <location>/chains.jsonl, dataset_info.json, images/<id>          sharegpt
    <location>/README.md, data/train-00000-of-00002.parquet, ...     huggingface

Both carry every column of CHAIN_SCHEMA, so that what is exported comes back equal when it is imported.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray import storage
from rdmldg_ray.chains.format import IMAGE_MARK
from rdmldg_ray.chains.prompts import reasoning_prompt
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.config.names import check_path
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import (
    CHAIN_SCHEMA,
    QUESTION_SCHEMA,
    DatasetInfo,
    chains_location,
    read_dataset_info,
)

Form = Literal["sharegpt", "huggingface"]

_JSONL = "chains.jsonl"
_ROWS_PER_FILE = 2048
_ROWS_PER_GROUP = 64
# What LLaMA-Factory calls the columns and roles of a data set in this form.
_SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
_HF_FEATURES = {
    "image": {"_type": "Image"},
    "label": {"dtype": "string", "_type": "Value"},
    "domain": {"dtype": "string", "_type": "Value"},
    **{name: {"dtype": str(CHAIN_SCHEMA.field(name).type), "_type": "Value"} for name in CHAIN_SCHEMA.names},
}
_HF_QUESTION_FEATURES = {
    "question": {"dtype": "string", "_type": "Value"},
    # Not as a List, which releases before 4.0 do not know.
    "options": [{"dtype": "string", "_type": "Value"}],
}
_HF_README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Chains of {teacher} for the images of {dataset}: {count} rows.
"""


def export_chains(
    root: str, dataset: str, teacher: str, location: str, form: Form, only_accepted: bool = True
) -> int:
    """Write a teacher's chains with their images to a location; returns how many.

    Args:
        only_accepted: whether rejected chains are left out. LLaMA-Factory trains on every line.

    Raises:
        ValueError: when there are none, or the location is not empty.
    """
    info = read_dataset_info(root, dataset)
    if storage.list_entries(location):
        raise ValueError(f"{location}: there are files here; export to an empty folder")
    chains = read_chains(root, dataset, teacher, info.environments).select(CHAIN_SCHEMA.names)
    if only_accepted:
        chains = chains.filter(pc.field("accepted"))
    if not len(chains):
        raise ValueError(
            f"{chains_location(root, dataset, teacher)}: no chain is accepted; export all of them"
        )
    samples = {row["id"]: row for row in sample_index(root, info, info.environments).to_pylist()}
    rows = [{**samples[chain["id"]], **chain} for chain in chains.to_pylist()]
    if form == "sharegpt":
        _write_sharegpt(location, info, rows)
    else:
        _write_huggingface(location, info, teacher, rows)
    return len(rows)


def _write_sharegpt(location: str, info: DatasetInfo, rows: Sequence[Mapping[str, Any]]) -> None:
    def lines() -> Iterator[bytes]:
        for row in rows:
            asked = question_of(row, info.classes)
            prompt = reasoning_prompt(asked.options, asked.text)
            messages = [
                {"role": "user", "content": f"{IMAGE_MARK}{prompt}"},
                {"role": "assistant", "content": row["text"]},
            ]
            others = {name: row[name] for name in CHAIN_SCHEMA.names if name != "text"}
            line = {"messages": messages, "images": [f"images/{row['id']}"], **others}
            yield (json.dumps(line | {"label": row["label"]}, ensure_ascii=False) + "\n").encode()

    for batch in _batches(rows, _ROWS_PER_GROUP):
        for row, image in zip(batch, _images(batch), strict=True):
            name = check_path("the sample's id", row["id"])
            storage.write_bytes(storage.join(location, "images", name), image)
    described = {f"{info.name}_chains": {"file_name": _JSONL, **_SHAREGPT}}
    storage.write_json(storage.join(location, "dataset_info.json"), described)
    storage.write_chunks(storage.join(location, _JSONL), lines())


def _write_huggingface(
    location: str, info: DatasetInfo, teacher: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    asked = QUESTION_SCHEMA if info.questions else []
    head = [("image", image), *asked, ("label", pa.string()), ("domain", pa.string())]
    # Without this note the library would take an image for a struct of bytes.
    features = _HF_FEATURES | (_HF_QUESTION_FEATURES if info.questions else {})
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([*head, *CHAIN_SCHEMA], metadata=note)
    parts = list(_batches(rows, _ROWS_PER_FILE))
    for number, part in enumerate(parts):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for batch in _batches(part, _ROWS_PER_GROUP):
                filled = [
                    {**row, "image": {"bytes": data, "path": row["id"]}}
                    for row, data in zip(batch, _images(batch), strict=True)
                ]
                writer.write_table(pa.Table.from_pylist(filled, schema=schema))
        name = f"data/train-{number:05d}-of-{len(parts):05d}.parquet"
        storage.write_bytes(storage.join(location, name), sink.getvalue().to_pybytes())
    readme = _HF_README.format(teacher=teacher, dataset=info.name, count=len(rows))
    storage.write_bytes(storage.join(location, "README.md"), readme.encode())


def _batches(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _images(rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    return storage.read_images(
        pa.table({name: [row[name] for row in rows] for name in ("file", "row_group", "row")})
    )
