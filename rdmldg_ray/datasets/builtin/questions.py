"""iconbed-vqa: questions about IconBed's drawings instead of classes.

Three questions of 96 rows in each domain, their answers in equal numbers: "Is this something to eat?" (yes,
no), "What kind of thing is this?" (eight options) and "Which of these is drawn here?" (four names). Rows and
chains are a file of the package, made by ``tools/iconbed/build_questions.py``; the images are IconBed's.
"""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rdmldg_ray.datasets.builtin.iconbed import (
    iconbed_file,
    iconbed_samples,
    packed_content,
    write_builtin,
)
from rdmldg_ray.datasets.schema import QUESTION_SCHEMA, SAMPLE_SCHEMA, DatasetInfo, version_of
from rdmldg_ray.domainbed.catalogue import ICONBED

NAME = "iconbed-vqa"
FILE = "questions.parquet"


def iconbed_vqa_info() -> DatasetInfo:
    """What the set holds, read without its images."""
    rows = _rows(["label", "domain"])
    content = packed_content("iconbed.parquet", FILE)
    return DatasetInfo(
        name=NAME,
        environments=ICONBED.environments,
        classes=tuple(sorted({row["label"] for row in rows})),
        counts={domain: sum(row["domain"] == domain for row in rows) for domain in ICONBED.environments},
        questions=True,
        content=content,
        version=version_of(content),
    )


def write_iconbed_vqa(root: str) -> None:
    """Write the set and its chains to storage; does nothing when the same content is there.

    Raises:
        ValueError: when a data set of another origin has its name there.
        StorageError: when the storage cannot be written.
    """
    write_builtin(
        root, iconbed_vqa_info(), lambda: (_samples(), pq.read_table(io.BytesIO(iconbed_file(FILE))))
    )


def _samples() -> pa.Table:
    drawings = {row["id"]: row for row in iconbed_samples().to_pylist()}
    classes = iconbed_vqa_info().classes
    samples: list[dict[str, Any]] = []
    for domain in ICONBED.environments:
        mine = sorted((row for row in _rows() if row["domain"] == domain), key=lambda row: row["id"])
        for index, row in enumerate(mine):
            asked = {name: row[name] for name in ("id", "label", *QUESTION_SCHEMA.names)}
            place = {"label_id": classes.index(row["label"]), "index": index}
            samples.append(drawings[row["drawing"]] | asked | place)
    return pa.Table.from_pylist(samples, schema=pa.schema([*SAMPLE_SCHEMA, *QUESTION_SCHEMA]))


def _rows(columns: list[str] | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(iconbed_file(FILE)), columns=columns).to_pylist()
    return rows
