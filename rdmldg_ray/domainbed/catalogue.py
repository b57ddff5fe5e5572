"""The data sets that are known by name, and what their literature says of them.

The numbers serve to check an ingest ("9,991 images expected"). Names of classes are given only for the
embedded data set; for the others the folders of the archive are the authority.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rdmldg_ray.chains.format import find_alike


@dataclass(frozen=True)
class Dataset:
    """A data set of the benchmark.

    Attributes:
        name: as used on storage and in configurations.
        title: as printed in tables.
        environments: its domains, sorted; an environment's index is its place here.
        num_classes: how many classes every environment has.
        num_images: images in all environments, as the literature counts them. Downloads may differ.
        class_names: the classes, sorted, where they are certain.
        counts: images in each environment, where the literature agrees on them.
        other_names: what other downloads call an environment, beside other ways to write its name.
    """

    name: str
    title: str
    environments: tuple[str, ...]
    num_classes: int
    num_images: int
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    other_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert list(self.environments) == sorted(self.environments), self.name
        assert self.counts is None or sum(self.counts) == self.num_images, self.name
        assert self.class_names is None or len(self.class_names) == self.num_classes, self.name
        assert not find_alike(self.environments) and not find_alike(self.class_names or ()), self.name

    def environment(self, folder: str) -> str | None:
        """The environment that a folder's name means, however it is spelled; None for any other name."""
        known = {name: name for name in self.environments} | dict(self.other_names)
        return next((known[name] for name in known if _letters(name) == _letters(folder)), None)


ICONBED = Dataset(
    "iconbed",
    "IconBed",
    ("flat", "gradient", "paint", "sketch"),
    12,
    1148,
    (
        "bird",
        "bug",
        "building",
        "clothing",
        "drink",
        "mammal",
        "meal",
        "plant",
        "produce",
        "sea_animal",
        "tool",
        "vehicle",
    ),
    (287, 287, 287, 287),
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ICONBED,
        Dataset(
            "pacs",
            "PACS",
            ("art_painting", "cartoon", "photo", "sketch"),
            7,
            9991,
            counts=(2048, 2344, 1670, 3929),
            other_names={"art": "art_painting", "painting": "art_painting"},
        ),
        Dataset(
            "vlcs",
            "VLCS",
            ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
            5,
            10729,
            counts=(1415, 2656, 3282, 3376),
            other_names={
                "Caltech": "Caltech101",
                "SUN": "SUN09",
                "VOC": "VOC2007",
                "PASCAL": "VOC2007",
                "PASCAL VOC": "VOC2007",
            },
        ),
        Dataset(
            "officehome",
            "OfficeHome",
            ("Art", "Clipart", "Product", "Real World"),
            65,
            15588,
            counts=(2427, 4365, 4439, 4357),
            other_names={"Real": "Real World", "Clip Art": "Clipart"},
        ),
        # Newer downloads hold about 24,330 images.
        Dataset(
            "terraincognita",
            "TerraIncognita",
            ("location_100", "location_38", "location_43", "location_46"),
            10,
            24788,
            other_names={f"L{number}": f"location_{number}" for number in (38, 43, 46, 100)},
        ),
    )
}


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def get_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: when there is none; the message names the nearest names, or all of them.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name.lower(), DATASETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(DATASETS)}"
    raise ValueError(f"unknown data set {name!r}; {hint}")
