"""What an ingest will do: which files become samples, in which order, and in which parts."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from rdmldg_ray import storage
from rdmldg_ray.chains.format import display_name, find_alike, find_listed
from rdmldg_ray.config.names import check_name
from rdmldg_ray.datasets.builtin.embedded import is_embedded
from rdmldg_ray.datasets.images import MAX_PIXELS
from rdmldg_ray.datasets.ingest.archives import (
    DEFAULT_LIMITS,
    ReadLimits,
    Reject,
    Source,
    SourceFile,
    open_source,
)
from rdmldg_ray.datasets.ingest.image_folder import ImageFolder, find_image_folder
from rdmldg_ray.datasets.schema import dataset_location, part_name, samples_location, version_of

DEFAULT_MAX_REJECTS = 0.01

# Part of a plan's hash: raise it when the same files are to be laid down in another way.
_LAYOUT_VERSION = "1"
_SHARD_BYTES = 32 * 1024 * 1024
_SHARD_FILES = 2048
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REJECTS_SHOWN = 5


@dataclass(frozen=True)
class Shard:
    """The files of one part, a run of a domain's files in ImageFolder order."""

    domain: str
    number: int
    """Of the part within the domain, from 0."""
    first: int
    """Index of the first file within the domain."""
    files: Sequence[SourceFile]


@dataclass(frozen=True)
class Destination:
    """Where parts are written, and what they need to know of the data set."""

    root: str
    name: str
    classes: tuple[str, ...]
    prefix: str
    """Of paths in the source, before the environment."""
    questions: bool = False
    """Whether each sample has a question of its own."""
    version: str = ""
    """Of the parts: the start of the plan's ``content``."""
    max_pixels: int = MAX_PIXELS
    """Of an image."""

    def part(self, shard: Shard) -> str:
        """Where a shard's samples are written."""
        folder = samples_location(self.root, self.name, shard.domain)
        return storage.join(folder, part_name(shard.number, self.version))

    def rejects(self, shard: Shard | None = None) -> str:
        """Where a shard's rejects are written; without a shard, the folder of all of them."""
        folder = storage.join(dataset_location(self.root, self.name), "rejects")
        if shard is None:
            return folder
        return storage.join(folder, shard.domain, part_name(shard.number, self.version))

    def unread(self) -> str:
        """Where the files that are rejected unread are written."""
        return storage.join(self.rejects(), f"unread-{self.version}.parquet")

    def unpacked(self) -> str:
        """Where an archive is unpacked, as long as it is read."""
        folder = dataset_location(self.root, self.name)
        return storage.join(folder, f"unpacked-{self.version}.tar")


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will do."""

    source: Source
    target: Destination
    layout: ImageFolder
    rejects: Sequence[Reject]
    """Files that are rejected unread."""
    shards: Sequence[Shard]
    content: str
    """Hash of the listing."""
    max_rejects: float

    @property
    def num_files(self) -> int:
        """Files of the source, those rejected unread included."""
        return sum(map(len, self.layout.environments.values())) + len(self.rejects)


def plan_ingest(
    location: str,
    root: str,
    dataset: str,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> IngestPlan:
    """List a source and plan its ingest; writes nothing.

    Args:
        location: a folder, a zip or a tar of ``<environment>/<class>/<file>``, local or on S3.
        dataset: a name of the catalogue, whose folders are then checked, or any other.
        max_rejects: largest share of files that may be rejected, between 0 and 1.
        limits: ceilings on what is read.

    Raises:
        ValueError: when the source is not such a tree, or not the data set of that name, or holds more than
            the ceilings allow.
    """
    check_dataset_name(dataset)
    source = open_source(location, limits)
    listing = source.list()
    unread = listing.rejects
    try:
        layout = find_image_folder(location, listing.files, dataset, listing.empty)
    except ValueError as error:
        if not unread:
            raise
        # Which may be why the rest makes no data set.
        raise ValueError(
            f"{error}\n{len(unread)} entries are rejected unread, the first: {unread[0].message}"
        ) from None
    target = Destination(root, dataset, layout.classes, layout.prefix, max_pixels=limits.pixels)
    return make_plan(
        source=source,
        target=target,
        layout=layout,
        rejects=[*unread, *layout.rejects],
        max_rejects=max_rejects,
    )


def check_dataset_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of an ingested data set."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is no name for a data set; use letters, digits and . _ -")
    check_name("the data set", name)
    if is_embedded(name):
        raise ValueError(
            f"'{name}' is the data set in the package, which needs no ingest; ingest your own under another "
            "name (--dataset custom --name NAME)"
        )


def make_plan(
    source: Source, target: Destination, layout: ImageFolder, rejects: Sequence[Reject], max_rejects: float
) -> IngestPlan:
    """The plan for what a source was found to hold; raises as ``plan_ingest``."""
    for environment in layout.environments:
        check_name("the environment", environment)
    _check_alike(source.location, "domains", layout.environments)
    if not target.questions:
        _check_alike(source.location, "classes", layout.classes)
        if listed := find_listed(layout.classes):
            raise ValueError(
                f"{source.location}: the class '{listed[1]}' reads as a list of several in a prompt, and "
                f"'{listed[0]}' is another class; rename one of the folders"
            )
    digest = hashlib.sha256(f"{_LAYOUT_VERSION}\n{target.name}\n{layout.prefix}\n".encode())
    if target.max_pixels != MAX_PIXELS:
        # Parts that were written with another ceiling have other rejects.
        digest.update(f"{target.max_pixels} pixels\n".encode())
    for environment, files in layout.environments.items():
        for file in files:
            digest.update(f"{file.path}\0{file.size}\0{file.stamp}\n".encode())
            if file.row is not None:
                digest.update(f"{environment}\0{json.dumps(file.row)}\n".encode())
    for reject in sorted(rejects, key=lambda reject: (reject.path, reject.reason)):
        digest.update(f"{reject.path}\0{reject.reason}\n".encode())
    plan = IngestPlan(
        source=source,
        target=replace(target, version=version_of(digest.hexdigest())),
        layout=layout,
        rejects=rejects,
        shards=list(_shards(layout)),
        content=digest.hexdigest(),
        max_rejects=max_rejects,
    )
    check_rejects(plan, len(rejects), (reject.message for reject in rejects))
    return plan


def check_rejects(plan: IngestPlan, rejected: int, messages: Iterable[str]) -> None:
    """Stop an ingest of which too much is rejected.

    Raises:
        ValueError: when the rejected files are more than the allowed share; it names the first few.
    """
    if rejected <= plan.max_rejects * plan.num_files and rejected < plan.num_files:
        return
    shown = [f"  {message}" for message in islice(messages, _REJECTS_SHOWN)]
    what = "rows" if plan.target.questions else "files"
    why, remedy = "and nothing is left", "mend them"
    if rejected < plan.num_files:
        why = f"more than the share of {plan.max_rejects:g} that is allowed"
        remedy = "mend or remove them, or raise the share (--max-rejects)"
    head = f"{plan.source.location}: {rejected} of {plan.num_files} {what} are rejected, {why}:"
    raise ValueError("\n".join([head, *shown, remedy]))


def _check_alike(location: str, kind: str, names: Iterable[str]) -> None:
    if alike := find_alike(names):
        first, second = alike
        codes = "" if display_name(first) != display_name(second) else f" ({first!a}, {second!a})"
        raise ValueError(
            f"{location}: the {kind} '{first}' and '{second}'{codes} are one when letters and digits alone "
            "are compared, as answers are; rename one of the folders, or put their images into one"
        )


def _shards(layout: ImageFolder) -> Iterator[Shard]:
    for domain, files in layout.environments.items():
        number = first = size = 0
        for place, file in enumerate(files):
            if place > first and (size + file.size > _SHARD_BYTES or place - first >= _SHARD_FILES):
                yield Shard(domain, number, first, files[first:place])
                number, first, size = number + 1, place, 0
            size += file.size
        yield Shard(domain, number, first, files[first:])
