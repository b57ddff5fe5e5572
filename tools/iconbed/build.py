"""Rebuild the images of the embedded data set from the artwork they were drawn as.

    pip install --no-deps resvg-py==0.5.0
    python -m tools.iconbed.build --out iconbed.parquet

Downloads the pinned packages with the npm client, renders every concept in every domain, and writes a
Parquet file like the shipped one. Which concepts there are, their classes, names and keywords are read
from the shipped file; only the images are made anew. With other versions of Pillow or of resvg the bytes
may differ a little.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from rdmldg_ray.datasets.builtin.iconbed import iconbed_file, iconbed_id

RENDER_SIZE = 384  # pixels; well above the final size, so that Lanczos has something to average
DRAWING_SIZE = 88  # pixels of the longer side
IMAGE_SIZE = 96  # pixels
PAPER = 247  # a pixel is drawn on when one of its channels is below: more than 8 from white


@dataclass(frozen=True)
class Package:
    """A pinned npm package and the SHA-256 of its tarball."""

    spec: str
    sha256: str


OPENMOJI = Package("openmoji@17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68")
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)
# Domain: the icons, and the package that maps code points to their names (Fluent's own map is empty).
_NOTO = Package(
    "@iconify-json/noto@1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
)
_FLUENT = Package(
    "@iconify-json/fluent-emoji@1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"
)
_TWEMOJI = Package(
    "@iconify-json/twemoji@1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
)
ICON_SETS = {"paint": (_NOTO, _NOTO), "gradient": (_FLUENT, FLUENT_FLAT), "flat": (_TWEMOJI, _TWEMOJI)}


class DownloadError(ValueError):
    """A package could not be downloaded."""


def download(package: Package, folder: Path) -> Path:
    """The package's tarball, fetched into the folder by the npm client.

    Raises:
        DownloadError: without npm, or when its registry cannot be reached.
        ValueError: when the tarball is not the pinned one.
    """
    command = ["npm", "pack", "--fetch-retries=1", package.spec]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"npm pack {package.spec}: {error}") from error
    if done.returncode:
        raise DownloadError(f"npm pack {package.spec} failed: {done.stderr.strip()[-500:]}")
    name, version = package.spec.lstrip("@").replace("/", "-").rsplit("@", 1)
    tarball = folder / f"{name}-{version}.tgz"
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{package.spec}: the tarball's SHA-256 is {digest}, not {package.sha256}")
    return tarball


class Artwork:
    """The SVG drawings of all domains.

    Raises:
        DownloadError: when a package cannot be had.
        ValueError: when a package is not the pinned one.
    """

    def __init__(self, folder: Path):
        files: dict[Package, Path] = {}
        for package in [OPENMOJI, *(package for pair in ICON_SETS.values() for package in pair)]:
            if package not in files:
                files[package] = download(package, folder)
        self._sets = {}
        for domain, (icons, names) in ICON_SETS.items():
            chars = json.loads(_members(files[names], "package/chars.json")["chars.json"])
            self._sets[domain] = (
                json.loads(_members(files[icons], "package/icons.json")["icons.json"]),
                chars,
            )
        self._line_art = _members(files[OPENMOJI], "package/black/svg/")

    def svg(self, domain: str, hexcode: str) -> str:
        """A concept's drawing in a domain.

        Raises:
            KeyError: when the artwork does not have it.
        """
        if domain == "sketch":
            return self._line_art[f"{hexcode}.svg"].decode()
        icons, chars = self._sets[domain]
        icon = _resolve(icons, chars[hexcode.lower()])
        left, top, width, height = (
            icon.get(key, icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
            f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def _members(tarball: Path, prefix: str) -> dict[str, bytes]:
    with tarfile.open(tarball) as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile() and member.name.startswith(prefix)
        }


def _resolve(icons: dict[str, Any], name: str) -> dict[str, Any]:
    """An icon by its name, or by that of an alias that changes nothing else."""
    if name in icons["icons"]:
        icon: dict[str, Any] = icons["icons"][name]
        return icon
    alias = icons["aliases"][name]
    assert set(alias) <= {"parent"}, f"{name}: an alias that flips or turns its icon"
    return _resolve(icons, alias["parent"])


def render(svg: str) -> Image.Image:
    """The drawing, trimmed, scaled and centred on white; no font of this machine takes part."""
    # With both sides given a drawing that is not square is fitted in, its proportions kept.
    data = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=RENDER_SIZE,
        height=RENDER_SIZE,
        background="#ffffff",
        skip_system_fonts=True,
    )
    large = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    rows, columns = np.nonzero(np.asarray(large).min(axis=2) < PAPER)
    drawing = large.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    scale = DRAWING_SIZE / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    small = drawing.resize((width, height), Image.Resampling.LANCZOS)
    image.paste(small, ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2))
    return image


def rebuild(rows: Sequence[dict[str, Any]], artwork: Artwork) -> list[dict[str, Any]]:
    """The rows of the shipped file with their images made anew."""
    rebuilt = []
    for row in rows:
        sink = io.BytesIO()
        render(artwork.svg(row["domain"], row["hexcode"])).save(sink, "PNG", optimize=True)
        rebuilt.append({**row, "image": sink.getvalue()})
    return rebuilt


def sample_rows(rows: Sequence[dict[str, Any]], concepts: int) -> list[dict[str, Any]]:
    """The rows of some concepts, spread evenly over the classes, in all domains."""
    hexcodes = list(dict.fromkeys(row["hexcode"] for row in rows))
    step = max(1, len(hexcodes) // concepts)
    wanted = set(hexcodes[::step][:concepts])
    return [row for row in rows if row["hexcode"] in wanted]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--sample", type=int, metavar="N", help="only N concepts, in every domain")
    args = parser.parse_args(argv)
    shipped = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet")))
    rows = shipped.to_pylist()
    if args.sample is not None:
        if args.sample < 1:
            parser.error("--sample needs at least one concept")
        rows = sample_rows(rows, args.sample)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rebuilt = rebuild(rows, Artwork(Path(folder)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    pq.write_table(pa.Table.from_pylist(rebuilt, schema=shipped.schema), args.out, compression="zstd")
    differing = [
        iconbed_id(old) for old, new in zip(rows, rebuilt, strict=True) if old["image"] != new["image"]
    ]
    print(f"{args.out}: {len(rebuilt)} images, {len(differing)} of them not byte for byte as shipped")
    for id in differing:
        print(f"  {id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
