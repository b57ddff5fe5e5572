"""IconBed, the embedded data set of four drawing styles, with the chains of a teacher of rules."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import check_image
from rdmldg_ray.datasets.schema import (
    CHAIN_SCHEMA,
    PART,
    SAMPLE_SCHEMA,
    DatasetInfo,
    chains_location,
    dataset_location,
    has_content,
    info_location,
    write_samples,
)
from rdmldg_ray.domainbed.catalogue import ICONBED

RULES = "rules"
# Raised when the same content is to be written in another way.
_LAYOUT_VERSION = "3"


def iconbed_file(file_name: str) -> bytes:
    """A file of the embedded data set, as shipped with this package."""
    return resources.files("rdmldg_ray.datasets.builtin").joinpath("iconbed_data", file_name).read_bytes()


def iconbed_info() -> DatasetInfo:
    """What the embedded data set holds, read without its images."""
    packed = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet")), columns=["domain", "label"])
    return DatasetInfo(
        name=ICONBED.name,
        environments=tuple(sorted(set(packed["domain"].to_pylist()))),
        classes=tuple(sorted(set(packed["label"].to_pylist()))),
        counts=dict(Counter(packed["domain"].to_pylist())),
    )


def iconbed_samples() -> pa.Table:
    """The embedded data set in SAMPLE_SCHEMA, by domain and within it in ImageFolder order."""
    packed = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet"))).to_pylist()
    assert ICONBED.class_names is not None
    rows: list[dict[str, Any]] = []
    for domain in ICONBED.environments:
        members = [row for row in packed if row["domain"] == domain]
        # Plain string order, of folders and then of files: capitals before small letters.
        for index, row in enumerate(sorted(members, key=lambda row: (row["label"], row["hexcode"] + ".png"))):
            id = iconbed_id(row)
            width, height = check_image(id, row["image"])
            rows.append(
                {
                    "id": id,
                    "image": row["image"],
                    "label": row["label"],
                    "label_id": ICONBED.class_names.index(row["label"]),
                    "domain": domain,
                    "index": index,
                    "width": width,
                    "height": height,
                    "sha256": hashlib.sha256(row["image"]).hexdigest(),
                }
            )
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def iconbed_id(row: Mapping[str, Any]) -> str:
    """The stable id of a row of the embedded Parquet file."""
    return f"{ICONBED.name}/{row['domain']}/{row['label']}/{row['hexcode']}.png"


def write_iconbed(root: str) -> None:
    """Write IconBed and its chains to storage; does nothing when the same content is there.

    Raises:
        StorageError: when the storage cannot be written.
    """
    packed = [iconbed_file("iconbed.parquet"), iconbed_file("chains.parquet")]
    info = iconbed_info()
    assert (info.environments, info.classes) == (ICONBED.environments, ICONBED.class_names)
    write_builtin(root, info, packed, lambda: (iconbed_samples(), pq.read_table(io.BytesIO(packed[1]))))


def write_builtin(
    root: str, info: DatasetInfo, packed: list[bytes], unpack: Callable[[], tuple[pa.Table, pa.Table]]
) -> None:
    """Write a data set of the package to storage, unless the same content is there.

    Args:
        packed: the files that it is made from, whose hash is its content.
        unpack: its samples, in SAMPLE_SCHEMA, and their chains, one each, with columns ``id``, ``text``,
            ``conclusion``, ``prompt_version`` and ``teacher``.
    """
    content = hashlib.sha256(_LAYOUT_VERSION.encode() + b"".join(packed)).hexdigest()
    info_file = info_location(root, info.name)
    if has_content(info_file, content):
        return
    # Parts of an earlier content must not stay beside the new one.
    for folder in ("samples", "index"):
        storage.delete_folder(storage.join(dataset_location(root, info.name), folder))
    storage.delete_folder(chains_location(root, info.name, RULES))
    samples, texts = unpack()
    chains = _as_candidates(texts)
    for domain in info.environments:
        rows = samples.filter(pc.field("domain") == domain)
        write_samples(root=root, name=info.name, domain=domain, part=0, samples=rows)
        of_domain = chains.filter(pc.is_in(chains["id"], rows["id"]))
        part = storage.join(chains_location(root, info.name, RULES, domain), PART.format(0))
        storage.write_table(part, of_domain)
    storage.write_json(info_file, {**asdict(info), "content": content})


def _as_candidates(chains: pa.Table) -> pa.Table:
    # One chain a sample, and it concludes rightly by construction: all are candidate 0, and accepted.
    same = {"candidate": 0, "accepted": True, "reason": None}
    columns = ("id", "text", "conclusion", "prompt_version", "teacher")
    rows = [
        {"model" if name == "teacher" else name: row[name] for name in columns} | same
        for row in chains.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)
