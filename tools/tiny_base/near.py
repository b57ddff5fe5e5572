"""Is a drawing one of IconBed's? Hashes of pixels, and likeness, for what hashes cannot tell.

Likeness is the correlation of two drawings, scaled down to 24 x 24 pixels: 1 for the same drawing
rendered otherwise, in other shades or with thinner lines a little less. It is taken twice, of the
colours and of the outer silhouettes with the lines in them, and with the mirrored drawing too.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet
from PIL import Image

_SIDE = 24  # pixels, at which drawings are compared
LIMIT = 0.9  # a drawing of the same concept that correlates by more is left out
ANY_LIMIT = 0.98  # and one of any concept


def pixel_hash(view: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of uint8 [96, 96, 3]."""
    return hashlib.sha256(np.ascontiguousarray(view).tobytes()).hexdigest()[:16]


def signature(view: np.ndarray) -> np.ndarray:
    """uint8 [96, 96, 3] to its pixels at 24 x 24, of zero mean and unit length: float32 [1728]."""
    small = cv2.resize(view, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


class Check:
    """Compares drawings with all of IconBed's and keeps a log of those that come too close."""

    def __init__(self, iconbed: Path):
        rows = pyarrow.parquet.read_table(iconbed, columns=["image", "concept", "domain", "cldr_name"])
        self.rows = rows.to_pylist()
        images = [np.asarray(Image.open(io.BytesIO(row.pop("image"))).convert("RGB")) for row in self.rows]
        self.hashes = {pixel_hash(image) for image in images}
        both = [signature(image) for image in images] + [signature(image[:, ::-1]) for image in images]
        self.signatures = np.stack(both)
        self.log: list[dict[str, Any]] = []
        self.nearest: list[float] = []

    def rejects(self, view: np.ndarray, drawing: dict[str, Any]) -> bool:
        """Whether the view must not be learned from; ``drawing`` has its source, name and concept."""
        likeness = self.signatures @ signature(view)
        best = int(likeness.argmax())
        row = self.rows[best % len(self.rows)]
        value = float(likeness[best])
        same = row["cldr_name"].lower() == drawing["concept"]
        self.nearest.append(value)
        rejected = pixel_hash(view) in self.hashes or value > (LIMIT if same else ANY_LIMIT)
        if rejected or value > 0.9:
            about = {key: drawing[key] for key in ("source", "name", "concept")}
            like = {"likeness": round(value, 4), "domain": row["domain"], "of": row["cldr_name"]}
            self.log.append(about | like | {"left out": rejected})
        return rejected

    def write(self, path: Path) -> None:
        """Save the log, the closest first."""
        path.write_text(json.dumps(sorted(self.log, key=lambda entry: -entry["likeness"]), indent=1))
        out = sum(entry["left out"] for entry in self.log)
        print(f"near: {len(self.nearest)} views compared with IconBed's, {out} left out")
