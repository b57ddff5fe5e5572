"""Samples on storage: their schema, their checks, and the embedded data set.

::

    <root>/datasets/<name>/dataset.json                           written last
    <root>/datasets/<name>/samples/<domain>/part-00000.parquet    SAMPLE_SCHEMA
    <root>/datasets/<name>/index/<domain>/part-00000.parquet      INDEX_SCHEMA, of the same rows
    <root>/datasets/<name>/chains/<source>/<domain>/part-00000.parquet    CHAIN_SCHEMA
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray import storage
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.images import check_image

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
        ("sha256", pa.string()),  # of the image's bytes, hexadecimal
    ]
)
# A data set of questions has these columns too, in samples and index: what is asked about the image, and
# the options, of which the label is one. One of classes asks the same about every image, and lacks them.
QUESTION_SCHEMA = pa.schema([("question", pa.string()), ("options", pa.list_(pa.string()))])
# All but the image, and where in the part it lies: what a stage plans with, read in one go.
INDEX_SCHEMA = pa.schema(
    [
        *(column for column in SAMPLE_SCHEMA if column.name != "image"),
        ("row_group", pa.int32()),
        ("row", pa.int32()),  # within the row group
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

# A group is what is read for any one of its images, and training takes them in random order; but each
# group costs about 1 kB of metadata. So images of many kilobytes have a group each.
_ROWS_PER_GROUP = 4
_BYTES_PER_GROUP = 64 * 1024
_INFO_FILE = "dataset.json"
PART = "part-{:05d}.parquet"
# Part of the content's hash: raise it when the same content is to be laid down in another way.
_LAYOUT_VERSION = "3"


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set on storage holds.

    Attributes:
        environments: sorted.
        classes: sorted.
        counts: images in each environment.
        sizes: files in each environment that ImageFolder would list, where that is more than its images
            because some were rejected; they keep their places in the order.
        questions: whether each sample has a question and options of its own; ``classes`` are then all
            labels that occur.
    """

    name: str
    environments: tuple[str, ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    sizes: Mapping[str, int] = field(default_factory=dict)
    questions: bool = False

    def size(self, domain: str) -> int:
        """How many files ImageFolder would list in an environment: what DomainBed splits."""
        return self.sizes.get(domain, self.counts[domain])


def dataset_location(root: str, name: str) -> str:
    """Where a data set lies."""
    return storage.join(root, "datasets", name)


def samples_location(root: str, name: str, domain: str) -> str:
    """The folder of one domain's samples."""
    return storage.join(dataset_location(root, name), "samples", domain)


def index_location(root: str, name: str, domain: str) -> str:
    """The folder of the index of one domain's samples; its files are called as those of the samples."""
    return storage.join(dataset_location(root, name), "index", domain)


def chains_location(root: str, name: str, source: str, domain: str | None = None) -> str:
    """The folder of the chains that one source (a teacher, a model) wrote for a data set, or a domain."""
    folder = storage.join(dataset_location(root, name), "chains", source)
    return folder if domain is None else storage.join(folder, domain)


def info_location(root: str, name: str) -> str:
    """The file that says what a data set holds; it is there when, and only when, all of it is."""
    return storage.join(dataset_location(root, name), _INFO_FILE)


def read_dataset_info(root: str, name: str) -> DatasetInfo:
    """What the data set on storage holds.

    Raises:
        ValueError: when it is missing or incomplete; the message names the file and the remedy.
    """
    location = info_location(root, name)
    remedy = "ingest the data set again, or correct the storage path"
    try:
        value = storage.read_json(location)
        return DatasetInfo(
            name=value["name"],
            environments=tuple(value["environments"]),
            classes=tuple(value["classes"]),
            counts={domain: int(value["counts"][domain]) for domain in value["environments"]},
            sizes={domain: int(size) for domain, size in value.get("sizes", {}).items()},
            questions=bool(value.get("questions", False)),
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
    info_file = info_location(storage_root, name)
    if has_content(info_file, content):
        return

    # Parts of an earlier content must not stay beside the new one.
    for folder in (
        storage.join(dataset_location(storage_root, name), "samples"),
        storage.join(dataset_location(storage_root, name), "index"),
        chains_location(storage_root, name, RULES),
    ):
        storage.delete_folder(folder)
    samples = iconbed_samples()
    chains = _candidates(pq.read_table(io.BytesIO(packed_chains)))
    for domain in ICONBED.environments:
        rows = samples.filter(pc.field("domain") == domain)
        write_samples(storage_root, name, domain, 0, rows)
        of_domain = chains.filter(pc.is_in(chains["id"], rows["id"]))
        part = storage.join(chains_location(storage_root, name, RULES, domain), PART.format(0))
        storage.write_table(part, of_domain)
    info = iconbed_info()
    assert (info.environments, info.classes) == (ICONBED.environments, ICONBED.class_names)
    storage.write_json(info_file, {**asdict(info), "content": content})


def write_samples(root: str, name: str, domain: str, part: int, samples: pa.Table) -> None:
    """Write one part of a domain's samples, and before it its index.

    Args:
        samples: a table of SAMPLE_SCHEMA, followed by QUESTION_SCHEMA in a data set of questions.
    """
    asked = QUESTION_SCHEMA if question_columns(samples) else []
    assert samples.schema.equals(pa.schema([*SAMPLE_SCHEMA, *asked]))
    size = pc.sum(pc.binary_length(samples["image"])).as_py() or 0
    rows_per_group = max(1, min(_ROWS_PER_GROUP, _BYTES_PER_GROUP * len(samples) // max(1, size)))
    places = [divmod(row, rows_per_group) for row in range(len(samples))]
    index = samples.drop_columns(["image"])
    for place, column in enumerate(("row_group", "row")):
        index = index.append_column(column, pa.array([where[place] for where in places], pa.int32()))
    storage.write_table(storage.join(index_location(root, name, domain), PART.format(part)), index)
    codecs = {column: "none" if column == "image" else "zstd" for column in SAMPLE_SCHEMA.names}
    sink = pa.BufferOutputStream()
    # Images are compressed already, and no two are alike.
    pq.write_table(
        samples,
        sink,
        compression=codecs,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=rows_per_group,
    )
    location = storage.join(samples_location(root, name, domain), PART.format(part))
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def question_columns(table: pa.Table) -> list[str]:
    """Those of QUESTION_SCHEMA that a table of samples has: all, or none in a data set of classes."""
    return [name for name in QUESTION_SCHEMA.names if name in table.column_names]


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
                    "sha256": hashlib.sha256(row["image"]).hexdigest(),
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


def has_content(info_file: str, content: str) -> bool:
    """Whether a data set's description is there and names this content."""
    if not storage.exists(info_file):
        return False
    try:
        return bool(storage.read_json(info_file)["content"] == content)
    except (KeyError, TypeError, ValueError):
        return False  # A broken or foreign description is mended by writing the data set again.
