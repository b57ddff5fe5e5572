"""From a file of rows to an ingest: each good row is a sample, each bad one is rejected with its reason.

The plan is one of ``datasets.ingest.plan``; ``datasets.ingest.writing`` reads, checks and writes its images
as it does those of a folder, part by part. An image with several questions is read and written once for each
of them.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rdmldg_ray import storage
from rdmldg_ray.datasets.ingest.archives import DEFAULT_LIMITS, FolderSource, ReadLimits, Reject, SourceFile
from rdmldg_ray.datasets.ingest.image_folder import ImageFolder
from rdmldg_ray.datasets.ingest.plan import (
    DEFAULT_MAX_REJECTS,
    Destination,
    IngestPlan,
    check_dataset_name,
    make_plan,
    plan_ingest,
)
from rdmldg_ray.datasets.ingest.rows import COLUMNS, ENDINGS, Row, RowError, check_row, read_rows
from rdmldg_ray.domainbed.catalogue import DATASETS


def plan_source(
    location: str,
    root: str,
    dataset: str,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> IngestPlan:
    """Plan the ingest of a file of rows, or of what ``plan_ingest`` takes; raises as that and as below."""
    location = storage.absolute(location)
    if not location.lower().endswith(ENDINGS):
        return plan_ingest(location, root, dataset, max_rejects, limits)
    if dataset in DATASETS:
        raise ValueError(f"{location}: {dataset} has classes, not questions; ingest rows as custom")
    return plan_questions(location, root, dataset, max_rejects, limits)


def plan_questions(
    location: str,
    root: str,
    dataset: str,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> IngestPlan:
    """Read a file of rows and plan its ingest; writes nothing.

    A domain's samples are in the order of their ids, and DomainBed's split is over them.

    Args:
        location: a file that ``datasets.ingest.rows`` reads; the images lie in its folder or below.
        max_rejects: largest share of rows that may be rejected, between 0 and 1.
        limits: ceilings on what is read.

    Raises:
        ValueError: when the file is not such a file, or has no good row.
    """
    check_dataset_name(dataset)
    source = FolderSource(location.rsplit("/", 1)[0], limits)
    listing = source.list()
    images = {file.path: file for file in listing.files}
    refused = {reject.path: reject for reject in listing.rejects}
    samples: dict[str, tuple[Row, SourceFile]] = {}
    rejects: list[Reject] = []
    for place, given in read_rows(location):
        try:
            sample_id, row, file = _sample(given, images, refused, dataset)
            if sample_id in samples:
                raise RowError("duplicate", f"asks about {row.image} what an earlier row asks; remove one")
            samples[sample_id] = row, file
        except RowError as error:
            rejects.append(Reject(place, 0, error.reason, f"{location}, {place}: {error}"))
    if not samples:
        if not rejects:
            raise ValueError(
                f"{location}: there are no rows here; write one for each question, with {', '.join(COLUMNS)}"
            )
        raise ValueError(f"{location}: no row can be used: {rejects[0].message}")
    environments: dict[str, list[SourceFile]] = defaultdict(list)
    for sample_id, (row, file) in sorted(samples.items()):
        told = {"id": sample_id, "label": row.answer, "question": row.question, "options": list(row.options)}
        environments[row.domain].append(replace(file, row=told))
    classes = tuple(sorted({row.answer for row, _ in samples.values()}))
    layout = ImageFolder(dict(sorted(environments.items())), classes, "", rejects)
    return make_plan(
        source=source,
        target=Destination(
            root=root, name=dataset, classes=classes, prefix="", questions=True, max_pixels=limits.pixels
        ),
        layout=layout,
        rejects=rejects,
        max_rejects=max_rejects,
    )


def count_questions(plan: IngestPlan) -> int:
    """How many different questions a plan's rows ask."""
    files = (file for files in plan.layout.environments.values() for file in files)
    return len({file.row["question"] for file in files if file.row})


def _sample(
    given: Mapping[str, Any] | RowError,
    images: Mapping[str, SourceFile],
    refused: Mapping[str, Reject],
    dataset: str,
) -> tuple[str, Row, SourceFile]:
    if isinstance(given, RowError):
        raise given
    row = check_row(given)
    if row.image in refused:
        raise RowError(refused[row.image].reason, f"the image {refused[row.image].message}")
    if row.image not in images:
        raise RowError("no_image", f"there is no image '{row.image}' beside this file; correct the path")
    return row.sample_id(dataset), row, images[row.image]
