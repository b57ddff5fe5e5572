"""IconBed, the embedded data set of four drawing styles, with the chains of a teacher of rules."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import check_image
from rdmldg_ray.datasets.schema import (
    CHAIN_SCHEMA,
    CHAINS_FILE,
    SAMPLE_SCHEMA,
    DatasetInfo,
    chains_location,
    info_location,
    part_name,
    part_version,
    read_description,
    sweep_parts,
    version_of,
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
    content = packed_content("iconbed.parquet", "chains.parquet")
    return DatasetInfo(
        name=ICONBED.name,
        environments=tuple(sorted(set(packed["domain"].to_pylist()))),
        classes=tuple(sorted(set(packed["label"].to_pylist()))),
        counts=dict(Counter(packed["domain"].to_pylist())),
        content=content,
        version=version_of(content),
    )


@lru_cache
def packed_content(*file_names: str) -> str:
    """The content of a data set that is made from files of this package: their hash."""
    return hashlib.sha256(_LAYOUT_VERSION.encode() + b"".join(map(iconbed_file, file_names))).hexdigest()


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
        ValueError: when a data set of another origin has its name there.
        StorageError: when the storage cannot be written.
    """
    info = iconbed_info()
    assert (info.environments, info.classes) == (ICONBED.environments, ICONBED.class_names)
    write_builtin(
        root, info, lambda: (iconbed_samples(), pq.read_table(io.BytesIO(iconbed_file("chains.parquet"))))
    )


def write_builtin(root: str, info: DatasetInfo, unpack: Callable[[], tuple[pa.Table, pa.Table]]) -> None:
    """Write a data set of the package to storage, unless the same content is there.

    Samples and chains have the same version in their parts' names, and are both those of the data set from
    when dataset.json names it. Chains that somebody imported as the rules' stay.

    Args:
        info: with its ``content`` and ``version``.
        unpack: its samples, in SAMPLE_SCHEMA, and their chains, one each, with columns ``id``, ``text``,
            ``conclusion``, ``prompt_version`` and ``teacher``.

    Raises:
        ValueError: when a data set of another origin has the name there.
    """
    info_file = info_location(root, info.name)
    there = read_description(info_file)
    if there and there.get("content") == info.content:
        return
    if there and "source" in there:  # as an ingest writes it
        raise ValueError(
            f"{info_file}: a data set that was ingested from {there['source']} has the name of the embedded "
            f"'{info.name}', and is not replaced; ingest it under another name and remove this one, or "
            "choose another storage (--storage)"
        )
    samples, texts = unpack()
    chains = _as_candidates(texts)
    for domain in info.environments:
        rows = samples.filter(pc.field("domain") == domain)
        write_samples(root=root, name=info.name, domain=domain, part=0, samples=rows, version=info.version)
        of_domain = chains.filter(pc.is_in(chains["id"], rows["id"]))
        part = part_name(0, info.version)
        storage.write_table(storage.join(chains_location(root, info.name, RULES, domain), part), of_domain)
    storage.write_json(info_file, asdict(info))
    sweep_parts(root, info.name, info.version)
    rules = chains_location(root, info.name, RULES)
    if not storage.exists(storage.join(rules, CHAINS_FILE)):
        for file in storage.list_files(rules, ".parquet"):
            if part_version(file) != info.version:
                storage.delete_file(file)


def _as_candidates(chains: pa.Table) -> pa.Table:
    # One chain a sample, and it concludes rightly by construction: all are candidate 0, and accepted.
    same = {"candidate": 0, "accepted": True, "reason": None}
    columns = ("id", "text", "conclusion", "prompt_version", "teacher")
    rows = [
        {"model" if name == "teacher" else name: row[name] for name in columns} | same
        for row in chains.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)
