"""What a stage may see of a data set: an index of the samples of the domains it is given.

Training and generation get an index of the source domains only. The held-out domain's files are
never opened for it, not even for their metadata.
"""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.datasets.schema import (
    INDEX_SCHEMA,
    DatasetInfo,
    index_location,
    of_version,
    question_columns,
    samples_location,
)
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.storage import StorageError, join, list_files, read_table

_COLUMNS = ["id", "label", "label_id", "domain", "index", "sha256"]
_READ = pa.schema(
    [field.with_nullable(field.name in ("width", "height", "sha256")) for field in INDEX_SCHEMA]
)


def sample_index(
    root: str, info: DatasetInfo, domains: Sequence[str], columns: Sequence[str] = ()
) -> pa.Table:
    """One row for each sample of the given domains, without its image.

    Columns: ``id``, ``label``, ``label_id``, ``domain``, ``index`` (in ImageFolder order within the
    domain), ``sha256`` (of the image), those of ``samples.QUESTION_SCHEMA`` in a data set of questions,
    and where the image lies: ``file``, ``row_group``, ``row``.

    Args:
        columns: more columns of INDEX_SCHEMA that are wanted.

    Raises:
        ValueError: for a domain that the data set does not have.
        StorageError: when a domain has no files, or they are not what dataset.json tells of.
    """
    tables = []
    for domain in domains:
        if domain not in info.environments:
            raise ValueError(f"{info.name} has no domain '{domain}'; it has: {', '.join(info.environments)}")
        folder = index_location(root, info.name, domain)
        files = of_version(list_files(folder, ".parquet"), info.version)
        if not files:
            raise StorageError(f"{folder}: no Parquet files here; write the data set again")
        found = [_index_part(root, info, domain, file, columns) for file in files]
        if sum(map(len, found)) != info.counts[domain]:
            raise StorageError(
                f"{folder}: holds {sum(map(len, found))} samples, and dataset.json tells of "
                f"{info.counts[domain]}; write the data set again"
            )
        tables += found
    return pa.concat_tables(tables)


def _index_part(root: str, info: DatasetInfo, domain: str, location: str, more: Sequence[str]) -> pa.Table:
    index = read_table(location, schema=_READ)
    numbers = pc.index_in(index["label"], value_set=pa.array(info.classes, pa.string()))
    if not pc.all(pc.fill_null(pc.equal(numbers, index["label_id"]), False)).as_py():
        raise StorageError(
            f"{location}: its labels are not numbered as the classes in dataset.json are; "
            "write the data set again"
        )
    part = join(samples_location(root, info.name, domain), location.rsplit("/", 1)[-1])
    columns = [*_COLUMNS, *more, *question_columns(index)]
    return index.select([*columns, "row_group", "row"]).add_column(
        len(columns), "file", pa.array([part] * len(index), pa.string())
    )


def repeated_images(root: str, info: DatasetInfo) -> dict[str, int]:
    """How many different images occur in several domains, with several labels, and several times at all."""
    folders = [index_location(root, info.name, domain) for domain in info.environments]
    files = of_version((file for folder in folders for file in list_files(folder, ".parquet")), info.version)
    rows = pa.concat_tables([read_table(file, ["sha256", "domain", "label"], schema=_READ) for file in files])
    counted = rows.group_by("sha256").aggregate(
        [("domain", "count_distinct"), ("label", "count_distinct"), ("label", "count")]
    )
    columns = {"domains": "domain_count_distinct", "labels": "label_count_distinct", "all": "label_count"}
    return {name: pc.sum(pc.greater(counted[column], 1)).as_py() or 0 for name, column in columns.items()}


def base_classes(classes: Sequence[str]) -> list[str]:
    """The classes that base-to-new generalization trains on: the first half, the middle one included."""
    return list(classes[: (len(classes) + 1) // 2])


def take_split(
    index: pa.Table, info: DatasetInfo, split: Literal["in", "out"], trial_seed: int, holdout_fraction: float
) -> pa.Table:
    """The rows in DomainBed's ``in`` part (80 %) or ``out`` part (20 %) of each domain.

    DomainBed splits what ImageFolder lists, readable or not: so does this, and rows that an ingest
    rejected are missing from their part.
    """
    chosen = []
    for number, domain in enumerate(info.environments):
        rows = index.filter(pc.equal(index["domain"], domain))
        if len(rows):
            inside, outside = split_indices(info.size(domain), trial_seed, number, holdout_fraction)
            wanted = pa.array(inside if split == "in" else outside)
            chosen.append(rows.filter(pc.is_in(rows["index"], wanted)))
    return pa.concat_tables(chosen)
