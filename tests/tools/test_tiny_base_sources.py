"""The tiny base model never saw a drawing of IconBed: not by its packages, and not by its pixels."""

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import rdmldg_ray

sys.path.insert(0, str(Path(rdmldg_ray.__file__).parents[1]))  # tools are not part of the package
hashes = pytest.importorskip("tools.tiny_base.hashes", reason="not a checkout of the source")
near = importlib.import_module("tools.tiny_base.near")
sources = importlib.import_module("tools.tiny_base.sources")

ICONBED = Path(rdmldg_ray.__file__).parent / "datasets/builtin/iconbed_data/iconbed.parquet"
KIN = [
    "@iconify-json/noto",
    "@iconify-json/fluent-emoji",
    "@iconify-json/fluent-emoji-flat",
    "@iconify-json/fluent-emoji-high-contrast",
    "@iconify-json/twemoji",
    "@iconify-json/openmoji",
    "openmoji",
    "@expo-google-fonts/noto-emoji",
]


@pytest.fixture(scope="module")
def drawings():
    rows = pyarrow.parquet.read_table(ICONBED, columns=["image", "cldr_name", "domain"]).to_pylist()
    for row in rows:
        row["image"] = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
    return rows


def test_no_source_is_one_of_iconbeds_sets_or_a_sibling():
    assert not [source.package for source in sources.SOURCES if sources.is_kin(source.package)]
    assert all(sources.is_kin(package) for package in KIN)


def test_iconbeds_own_packages_are_refused():
    (package,) = {"@iconify-json/twemoji"}
    source = sources.Source(package, "1.2.5", "0" * 64, "CC-BY-4.0", "Twitter", "emoji")
    with pytest.raises(ValueError, match="kin to IconBed"):
        sources.fetch(source, Path("unused"))


def test_no_drawing_of_iconbed_is_among_the_views_learned_from(drawings):
    learned = hashes.read()
    mirrored = [row["image"][:, ::-1] for row in drawings]
    shown = [row["image"] for row in drawings] + mirrored

    assert len(learned) > 20_000
    assert not learned & {hashes.shorten(near.pixel_hash(image)) for image in shown}


@pytest.mark.parametrize("change", ["none", "mirrored", "darker", "resampled"])
def test_a_drawing_of_iconbed_would_be_left_out_even_if_changed(drawings, change):
    check = near.Check(ICONBED)
    kept = [row for row in drawings[::41] if not check.rejects(_changed(row["image"], change), _about(row))]
    assert not [(row["domain"], row["cldr_name"]) for row in kept]


def _about(row):
    return {"source": "a copy", "name": row["cldr_name"], "concept": row["cldr_name"].lower()}


def _changed(image, change):
    if change == "mirrored":
        return np.ascontiguousarray(image[:, ::-1])
    if change == "darker":
        return (image * 0.9).astype(np.uint8)
    if change == "resampled":
        small = Image.fromarray(image).resize((60, 60), Image.Resampling.BILINEAR)
        return np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))
    return image
