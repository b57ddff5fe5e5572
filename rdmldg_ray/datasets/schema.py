"""Data sets on storage: their schemas, where their files lie, and how samples are written.

::

    <root>/datasets/<name>/dataset.json                           written last
    <root>/datasets/<name>/samples/<domain>/part-00000.parquet    SAMPLE_SCHEMA
    <root>/datasets/<name>/index/<domain>/part-00000.parquet      INDEX_SCHEMA, of the same rows
    <root>/datasets/<name>/chains/<teacher>/<domain>/part-00000.parquet    CHAIN_SCHEMA

Names of parts may end in a version, as in ``part-00000-<version>.parquet``. Parts are then those of the data
set when, and only when, dataset.json names their version: a replacement is written beside what it replaces,
and takes its place when that file is written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray import storage
from rdmldg_ray.config.names import check_name

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
        ("accepted", pa.bool_()),
        ("reason", pa.string()),  # why it is not accepted; null when it is
        ("prompt_version", pa.string()),
        ("model", pa.string()),
        ("image_sha256", pa.string()),  # of the image that it was written for; null where that is not known
    ]
)

# A group is what is read for any one of its images, and training takes them in random order; but each
# group costs about 1 kB of metadata. So images of many kilobytes have a group each.
_ROWS_PER_GROUP = 4
_BYTES_PER_GROUP = 64 * 1024
_INFO_FILE = "dataset.json"
# Names the version of a teacher's parts that counts; see chains.store.
CHAINS_FILE = "chains.json"
PART = "part-{:05d}.parquet"
_VERSION = re.compile(r"-([0-9a-f]{12})\.parquet")
# What an ingest writes for a version, and what release 0.1.0 left beside it.
_OF_VERSIONS = re.compile(r"(samples|index|rejects)/|unpacked|ingest\.json")


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
        content: a hash of what it was made from; empty where that is not known.
        version: of its parts, empty where their names have none.
    """

    name: str
    environments: tuple[str, ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    sizes: Mapping[str, int] = field(default_factory=dict)
    questions: bool = False
    content: str = field(default="", compare=False)
    version: str = field(default="", compare=False)

    def size(self, domain: str) -> int:
        """How many files ImageFolder would list in an environment: what DomainBed splits."""
        return self.sizes.get(domain, self.counts[domain])


def part_name(number: int, version: str = "") -> str:
    """The name of a part, of a version of the data set or of chains."""
    return PART.format(number).replace(".", f"-{version}." if version else ".")


def version_of(content: str) -> str:
    """The version of the parts of a data set, by the hash of what it is made from."""
    return content[:12]


def of_version(files: Iterable[str], version: str) -> list[str]:
    """Those of some Parquet files that are of a version; of the empty one, those without one."""
    return [file for file in files if part_version(file) == version]


def part_version(file: str) -> str:
    """The version in a Parquet file's name, or nothing."""
    found = _VERSION.search(file)
    return found[1] if found and found.end() == len(file) else ""


def dataset_location(root: str, name: str) -> str:
    """Where a data set lies; raises ValueError, as all of these do, for what is no name of a folder."""
    return storage.join(root, "datasets", check_name("the data set", name))


def samples_location(root: str, name: str, domain: str) -> str:
    """The folder of one domain's samples."""
    return storage.join(dataset_location(root, name), "samples", check_name("the domain", domain))


def index_location(root: str, name: str, domain: str) -> str:
    """The folder of the index of one domain's samples; its files are called as those of the samples."""
    return storage.join(dataset_location(root, name), "index", check_name("the domain", domain))


def chains_location(root: str, name: str, teacher: str, domain: str | None = None) -> str:
    """The folder of the chains that one teacher wrote for a data set, or a domain."""
    folder = storage.join(dataset_location(root, name), "chains", check_name("the teacher", teacher))
    return folder if domain is None else storage.join(folder, check_name("the domain", domain))


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
        value = json.loads(storage.read_bytes(location))
        if value["name"] != name:
            raise ValueError(f"it is named {value['name']!r}, and its folder '{name}'")
        environments = _names(value, "environments")
        counts = {domain: _number(value["counts"][domain]) for domain in environments}
        sizes = {domain: _number(size) for domain, size in value.get("sizes", {}).items()}
        if smaller := [domain for domain, size in sizes.items() if size < counts.get(domain, 0)]:
            raise ValueError(f"{smaller[0]} has more images than files")
        return DatasetInfo(
            name=name,
            environments=tuple(check_name("the domain", domain) for domain in environments),
            classes=tuple(_names(value, "classes")),
            counts=counts,
            sizes=sizes,
            questions=value.get("questions", False) is True,
            content=str(value.get("content", "")),
            version=str(value.get("version", "")),
        )
    except storage.StorageError as error:
        raise ValueError(f"{error}; {remedy}") from error
    # What a file that is cut or edited makes of all this.
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{location}: does not describe a data set ({error!r}); {remedy}") from error


def _names(value: dict[str, Any], key: str) -> list[str]:
    names = value[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{key}' is no list of names")
    if len(set(names)) < len(names):
        raise ValueError(f"'{key}' has a name twice")
    "".join(names).encode()  # raises ValueError for half of a character
    return names


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of images")
    return value


def write_samples(root: str, name: str, domain: str, part: int, samples: pa.Table, version: str = "") -> None:
    """Write one part of a domain's samples, and before it its index.

    Args:
        samples: a table of SAMPLE_SCHEMA, followed by QUESTION_SCHEMA in a data set of questions.
        version: of the data set that the part is for, as its dataset.json names it.
    """
    asked = QUESTION_SCHEMA if question_columns(samples) else []
    assert samples.schema.equals(pa.schema([*SAMPLE_SCHEMA, *asked]))
    size = pc.sum(pc.binary_length(samples["image"])).as_py() or 0
    rows_per_group = max(1, min(_ROWS_PER_GROUP, _BYTES_PER_GROUP * len(samples) // max(1, size)))
    places = [divmod(row, rows_per_group) for row in range(len(samples))]
    index = samples.drop_columns(["image"])
    for place, column in enumerate(("row_group", "row")):
        index = index.append_column(column, pa.array([where[place] for where in places], pa.int32()))
    storage.write_table(storage.join(index_location(root, name, domain), part_name(part, version)), index)
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
    location = storage.join(samples_location(root, name, domain), part_name(part, version))
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def question_columns(table: pa.Table) -> list[str]:
    """Those of QUESTION_SCHEMA that a table of samples has: all, or none in a data set of classes."""
    return [name for name in QUESTION_SCHEMA.names if name in table.column_names]


def read_description(info_file: str) -> dict[str, Any] | None:
    """What a data set's description holds, unchecked: None when there is none, empty when it is broken."""
    if not storage.exists(info_file):
        return None
    try:
        found = storage.read_json(info_file)
    except storage.StorageError:
        raise
    except ValueError:
        return {}  # It is mended by writing the data set again.
    return found if isinstance(found, dict) else {}


def sweep_parts(root: str, name: str, version: str) -> None:
    """Remove what is of other versions than the one that counts, and what a broken-off ingest left.

    Files of this version stay, those too that another process is about to write.
    """
    folder = dataset_location(root, name)
    prefix = storage.folder_prefix(folder)
    for file in storage.list_files(folder):
        if _OF_VERSIONS.match(file.removeprefix(prefix)) and f"-{version}." not in file:
            storage.delete_file(file)
