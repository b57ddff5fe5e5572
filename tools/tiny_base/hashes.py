"""The hashes of all views that the tiny base learns from, as a small file that a test reads."""

from pathlib import Path

import numpy as np

from tools.tiny_base import near

FILE = Path(__file__).parent / "views.hashes"  # five bytes a view, in rising order
_BYTES = 5


def write(views: np.ndarray, path: Path = FILE) -> None:
    """Save the first five bytes of the SHA-256 of each view, uint8 [views, 96, 96, 3]."""
    path.write_bytes(b"".join(sorted({shorten(near.pixel_hash(view)) for view in views})))


def read(path: Path = FILE) -> set[bytes]:
    """The hashes, five bytes each."""
    data = path.read_bytes()
    return {data[start : start + _BYTES] for start in range(0, len(data), _BYTES)}


def shorten(digest: str) -> bytes:
    """A hexadecimal digest's first five bytes."""
    return bytes.fromhex(digest)[:_BYTES]
