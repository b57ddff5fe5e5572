"""Samples on storage: their schema, their checks, and the embedded data set.

::

    <root>/datasets/<name>/dataset.json                           written last
    <root>/datasets/<name>/samples/<domain>/part-00000.parquet    SAMPLE_SCHEMA
    <root>/datasets/<name>/chains/<source>/part-00000.parquet     CHAIN_SCHEMA
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from rdmldg_ray import storage
from rdmldg_ray.domainbed.catalogue import ICONBED

SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # <dataset>/<domain>/<path within the domain's folder>
        ("image", pa.binary()),  # encoded, as the file's bytes
        ("label", pa.string()),
        ("label_id", pa.int32()),  # place among the sorted classes
        ("domain", pa.string()),
        ("index", pa.int32()),  # place within the domain, in ImageFolder order
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
    ]
)
CHAIN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # the sample's
        ("candidate", pa.int32()),  # 0, 1, ... among the chains of a sample
        ("text", pa.string()),
        ("conclusion", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),  # why it is not kept; null when it is
        ("prompt_version", pa.string()),
        ("model", pa.string()),
    ]
)
RULES = "rules"

# Small groups let several readers share a file, and let one skip what it does not need.
_ROWS_PER_GROUP = 64
_INFO_FILE = "dataset.json"
# Part of the content's hash: raise it when the same content is to be laid down in another way.
_LAYOUT_VERSION = "1"


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set on storage holds; environments and classes are sorted, counts are images."""

    name: str
    environments: tuple[str, ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]


def dataset_location(root: str, name: str) -> str:
    """Where a data set lies."""
    return storage.join(root, "datasets", name)


def samples_location(root: str, name: str, domain: str) -> str:
    """The folder of one domain's samples."""
    return storage.join(dataset_location(root, name), "samples", domain)


def chains_location(root: str, name: str, source: str) -> str:
    """The folder of the chains that one source (a teacher, a model) wrote for a data set."""
    return storage.join(dataset_location(root, name), "chains", source)


def check_image(id: str, data: bytes) -> tuple[int, int]:
    """Decode an image to its last pixel and return its width and height.

    Raises:
        ValueError: when it does not decode; the message names the id and what is wrong.
    """
    if not data:
        raise ValueError(f"{id}: the image has no bytes")
    # A decoder fed with broken bytes fails in many ways (OSError, struct.error, zlib.error, ...); each
    # of them says the same of the image, so all of them are caught.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        # Verifying looks at checksums and consumes the file; only loading decodes the pixels.
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.size
    except Exception as error:
        problem = "is in no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{id}: the image cannot be decoded: {problem}") from error


def read_dataset_info(root: str, name: str) -> DatasetInfo:
    """What the data set on storage holds.

    Raises:
        ValueError: when it is missing or incomplete; the message names the file and the remedy.
    """
    location = storage.join(dataset_location(root, name), _INFO_FILE)
    remedy = "ingest the data set again, or correct the storage path"
    try:
        value = storage.read_json(location)
        return DatasetInfo(
            name=value["name"],
            environments=tuple(value["environments"]),
            classes=tuple(value["classes"]),
            counts={domain: int(value["counts"][domain]) for domain in value["environments"]},
        )
    except storage.StorageError as error:
        raise ValueError(f"{error}; {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{location}: does not describe a data set ({error!r}); {remedy}") from error


def write_iconbed(storage_root: str) -> None:
    """Lay the embedded data set, with the chains of the teacher of rules, down on storage.

    Does nothing when the same content is there already.

    Raises:
        ValueError: when the storage cannot be written.
    """
    packed, packed_chains = iconbed_file("iconbed.parquet"), iconbed_file("chains.parquet")
    content = hashlib.sha256(_LAYOUT_VERSION.encode() + packed + packed_chains).hexdigest()
    name = ICONBED.name
    info_location = storage.join(dataset_location(storage_root, name), _INFO_FILE)
    if _has_content(info_location, content):
        return

    samples = iconbed_samples()
    for domain in ICONBED.environments:
        rows = samples.filter(pc.field("domain") == domain)
        _write_only_part(samples_location(storage_root, name, domain), rows)
    chains = pq.read_table(io.BytesIO(packed_chains))
    _write_only_part(chains_location(storage_root, name, RULES), _candidates(chains))
    info = iconbed_info()
    assert (info.environments, info.classes) == (ICONBED.environments, ICONBED.class_names)
    storage.write_json(info_location, {**asdict(info), "content": content})


def iconbed_file(file_name: str) -> bytes:
    """A file of the embedded data set, as shipped with this package."""
    return resources.files("rdmldg_ray.domainbed").joinpath("iconbed", file_name).read_bytes()


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
                }
            )
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def iconbed_id(row: Mapping[str, Any]) -> str:
    """The stable id of a row of the embedded Parquet file."""
    return f"{ICONBED.name}/{row['domain']}/{row['label']}/{row['hexcode']}.png"


def _candidates(chains: pa.Table) -> pa.Table:
    # One chain a sample, and it concludes rightly by construction: all are candidate 0, and kept.
    rows = [
        {
            "id": row["id"],
            "candidate": 0,
            "text": row["text"],
            "conclusion": row["conclusion"],
            "kept": True,
            "reason": None,
            "prompt_version": row["prompt_version"],
            "model": row["teacher"],
        }
        for row in chains.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=CHAIN_SCHEMA)


def _write_only_part(folder: str, table: pa.Table) -> None:
    # Parts of an earlier content must not stay beside the new one.
    storage.delete_folder(folder)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    storage.write_bytes(storage.join(folder, "part-00000.parquet"), sink.getvalue().to_pybytes())


def _has_content(info_location: str, content: str) -> bool:
    if not storage.exists(info_location):
        return False
    try:
        return bool(storage.read_json(info_location)["content"] == content)
    except (KeyError, TypeError, ValueError):
        return False  # A broken or foreign description is mended by writing the data set again.
