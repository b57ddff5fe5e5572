import importlib.metadata
import io
import runpy

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdmldg_ray.datasets.builtin.iconbed import iconbed_file, iconbed_id

RESVG_VERSION = "0.5.0"
# Its drawing in the set "gradient" is not square, unlike nearly all others.
ELEPHANT = "1F418"


def shipped(name):
    return pq.read_table(io.BytesIO(iconbed_file(name)))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_shipped_chains_are_what_the_teacher_of_rules_writes():
    job = runpy.run_module("tools.iconbed.build_chains")
    assert job["build_chains"]().equals(shipped("chains.parquet"))


def test_the_artwork_still_gives_the_shipped_pixels(tmp_path):
    pytest.importorskip("resvg_py", reason=f"rendering needs resvg-py {RESVG_VERSION}")
    version = importlib.metadata.version("resvg-py")
    if version != RESVG_VERSION:
        pytest.skip(f"the images were made with resvg-py {RESVG_VERSION}; here is {version}")
    job = runpy.run_module("tools.iconbed.build")
    try:
        artwork = job["Artwork"](tmp_path)
    except job["DownloadError"] as error:
        pytest.skip(f"the artwork's packages cannot be downloaded here: {error}")

    rows = shipped("iconbed.parquet").to_pylist()
    chosen = job["sample_rows"](rows, 5) + [row for row in rows if row["hexcode"] == ELEPHANT]
    assert len(chosen) == 24
    for old, new in zip(chosen, job["rebuild"](chosen, artwork), strict=True):
        assert np.array_equal(pixels(old["image"]), pixels(new["image"])), iconbed_id(old)
