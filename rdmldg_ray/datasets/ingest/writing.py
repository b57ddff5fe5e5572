"""Ingest: from a folder or an archive of images to a data set on storage.

::

    <root>/datasets/<name>/samples/<domain>/part-00000-<version>.parquet    SAMPLE_SCHEMA
    <root>/datasets/<name>/index/<domain>/part-00000-<version>.parquet      INDEX_SCHEMA
    <root>/datasets/<name>/rejects/...                                      REJECT_SCHEMA
    <root>/datasets/<name>/dataset.json                                     written last

A plan divides the listed files into shards; each becomes one part, written whole, by a task of its own.
So an interrupted ingest resumes with the parts that are missing, and memory holds as many shards
as there are tasks at a time, however large the data set is. The version in a part's name is the plan's: what
is replaced lies beside it and is removed when dataset.json names the new version, so that an ingest that
fails leaves the data set that there was.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import ImageError, check_image
from rdmldg_ray.datasets.ingest.archives import Reject, Source, SourceFile, TarSource
from rdmldg_ray.datasets.ingest.plan import Destination, IngestPlan, Shard, check_rejects
from rdmldg_ray.datasets.schema import (
    QUESTION_SCHEMA,
    SAMPLE_SCHEMA,
    DatasetInfo,
    info_location,
    of_version,
    read_dataset_info,
    read_description,
    samples_location,
    sweep_parts,
    write_samples,
)
from rdmldg_ray.runtime.remote import map_rows

REJECT_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # within the source
        ("domain", pa.string()),  # null where the path tells none
        ("size", pa.int64()),  # bytes
        ("reason", pa.string()),  # a short machine-readable word
        ("message", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard."""

    domain: str
    number: int
    samples: int
    rejects: int


RunShards = Callable[[Source, Destination, Sequence[Shard]], Iterable[ShardReport]]


def is_ingested(plan: IngestPlan) -> bool:
    """Whether the same files are on storage already, all of them."""
    return (_described(plan.target) or {}).get("content") == plan.content


def check_replaces(plan: IngestPlan, replace_other: bool) -> None:
    """Refuse to replace another data set of the name, unless that is wanted.

    Raises:
        ValueError: when there is one; the message names the remedy.
    """
    if _described(plan.target) is not None and not is_ingested(plan) and not replace_other:
        name = plan.target.name
        raise ValueError(
            f"{info_location(plan.target.root, name)}: there is a data set '{name}' with other content "
            "(other files, sizes or times); choose another name or storage, or say that it is to be "
            "replaced (--replace)"
        )


def ingest(
    plan: IngestPlan,
    replace_other: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    run_shards: RunShards | None = None,
) -> DatasetInfo:
    """Write the data set; does nothing when it is there, and resumes an interrupted ingest.

    Args:
        replace_other: whether a data set of the same name with other content may be replaced, once all
            of the new one is written; until then it stays as it is.
        progress: called with images done, all images, and a word on rejects.
        run_shards: what runs ``write_shard`` over the shards; Ray Data by default, which must be
            connected.

    Raises:
        ValueError: when there is another data set of that name or another ingest writes it meanwhile, or
            more files are rejected than allowed.
        StorageError: when the source cannot be read or the storage cannot be written.
    """
    target = plan.target
    check_replaces(plan, replace_other)
    if is_ingested(plan):
        info = read_dataset_info(target.root, target.name)
        if info.version:
            storage.delete_file(target.unpacked())
            sweep_parts(target.root, target.name, info.version)
        return info
    description = info_location(target.root, target.name)
    before = storage.read_if_there(description)
    if plan.rejects:
        storage.write_table(target.unread(), _reject_table(plan.rejects, None))
    source, unpacked = plan.source, target.unpacked()
    if isinstance(source, TarSource) and source.needs_unpacking():
        source = replace(source, unpacked=unpacked) if storage.exists(unpacked) else source.unpack(unpacked)

    counts: Counter[str] = Counter()
    rejected = len(plan.rejects)
    done, total = 0, plan.num_files - rejected
    for report in (run_shards or _run_on_ray)(source, target, plan.shards):
        counts[report.domain] += report.samples
        rejected += report.rejects
        done += report.samples + report.rejects
        check_rejects(plan, rejected, _reject_messages(target))
        progress(done, total, f"{rejected} rejected")

    info = DatasetInfo(
        name=target.name,
        environments=tuple(plan.layout.environments),
        classes=target.classes,
        counts={domain: counts[domain] for domain in plan.layout.environments},
        sizes={domain: len(files) for domain, files in plan.layout.environments.items()},
        questions=target.questions,
        content=plan.content,
        version=target.version,
    )
    missing = {target.part(shard) for shard in plan.shards} - _written(target, plan)
    described = storage.json_bytes({**asdict(info), "source": plan.source.location})
    written = not missing and storage.write_if_unchanged(description, described, before)
    if not written and not is_ingested(plan):  # by another process, of the same files
        raise ValueError(
            f"{description}: another ingest wrote the data set '{target.name}' meanwhile; this one did not "
            "replace it, run it again if that is meant"
        )
    storage.delete_file(unpacked)
    sweep_parts(target.root, target.name, target.version)
    return info


def read_rejects(root: str, name: str, version: str | None = None) -> pa.Table:
    """The rejects of an ingest, in REJECT_SCHEMA.

    Args:
        version: of an ingest that stopped, as its plan's target has it; by default that of the data set.
    """
    if version is None:
        version = read_dataset_info(root, name).version
    folder = Destination(root, name, (), "").rejects()
    files = of_version(storage.list_files(folder, ".parquet"), version)
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *map(storage.read_table, files)])


def _reject_messages(target: Destination) -> Iterator[str]:
    yield from read_rejects(target.root, target.name, target.version)["message"].to_pylist()


def write_shard(source: Source, target: Destination, shard: Shard) -> ShardReport:
    """Read, check and write one shard; one that is written already is only counted."""
    if storage.exists(target.part(shard)):
        return ShardReport(
            shard.domain,
            shard.number,
            _count_rows(target.part(shard)),
            _count_rows(target.rejects(shard)) if storage.exists(target.rejects(shard)) else 0,
        )
    samples: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    # An archive is read from front to back, whatever the order of names.
    order = sorted(range(len(shard.files)), key=lambda place: shard.files[place].offset)
    contents = source.read(shard.files[place] for place in order)
    for place, content in zip(order, contents, strict=True):
        file = shard.files[place]
        try:
            if isinstance(content, ImageError):
                raise content
            samples.append(_sample(target, shard.domain, file, content, shard.first + place))
        except ImageError as error:
            rejects.append(Reject(file.path, file.size, error.reason, str(error)))
    samples.sort(key=lambda sample: sample["index"])
    # The part comes last: where it is, its rejects are too.
    if rejects:
        storage.write_table(target.rejects(shard), _reject_table(rejects, shard.domain))
    schema = pa.schema([*SAMPLE_SCHEMA, *QUESTION_SCHEMA]) if target.questions else SAMPLE_SCHEMA
    table = pa.Table.from_pylist(samples, schema=schema)
    write_samples(
        root=target.root,
        name=target.name,
        domain=shard.domain,
        part=shard.number,
        samples=table,
        version=target.version,
    )
    return ShardReport(shard.domain, shard.number, len(samples), len(rejects))


def _sample(target: Destination, domain: str, file: SourceFile, data: bytes, index: int) -> dict[str, Any]:
    path = file.path.removeprefix(target.prefix)
    told = file.row or {"id": f"{target.name}/{path}", "label": path.split("/", 2)[1]}
    width, height = check_image(file.path, data, target.max_pixels)
    return {
        **told,
        "image": data,
        "label_id": target.classes.index(told["label"]),
        "domain": domain,
        "index": index,
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _described(target: Destination) -> dict[str, Any] | None:
    return read_description(info_location(target.root, target.name))


def _written(target: Destination, plan: IngestPlan) -> set[str]:
    """The parts of samples that are on storage, as ``Destination.part`` has them."""
    found = set()
    for domain in plan.layout.environments:
        folder = samples_location(target.root, target.name, domain)
        prefix = storage.folder_prefix(folder)
        found |= {storage.join(folder, file.removeprefix(prefix)) for file in storage.list_files(folder)}
    return found


def _count_rows(location: str) -> int:
    with storage.open_parquet(location) as parquet:
        return int(parquet.metadata.num_rows)


def _reject_table(rejects: Sequence[Reject], domain: str | None) -> pa.Table:
    return pa.Table.from_pylist([{**asdict(r), "domain": domain} for r in rejects], schema=REJECT_SCHEMA)


def _run_on_ray(source: Source, target: Destination, shards: Sequence[Shard]) -> Iterator[ShardReport]:
    write = partial(_write_shard_row, source=source, target=target)
    for report in map_rows(write, [asdict(shard) for shard in shards]):
        yield ShardReport(**report)


def _write_shard_row(row: dict[str, Any], source: Source, target: Destination) -> dict[str, Any]:
    files = [SourceFile(**file) for file in row["files"]]
    return asdict(write_shard(source, target, Shard(**{**row, "files": files})))
