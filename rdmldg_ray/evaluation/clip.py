"""Embeddings by a CLIP that the user has, which is what the paper measures distances between domains with."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import CLIPModel

from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.evaluation.analyses import EMBEDDING_SCHEMA
from rdmldg_ray.models.loading import load_processor
from rdmldg_ray.storage import read_images

NAME = "clip"


class Clip:
    """A CLIP model of a local folder.

    Raises:
        ValueError: when the folder holds none.
    """

    def __init__(self, folder: Path):
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: no config.json here; give the folder of a CLIP model")
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.processor: Any = load_processor(folder)

    def embed(self, image: Image.Image, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(d,) each, of unit length, in the common space. A text is cut where CLIP's context ends."""
        inputs = self.processor(text=[text], images=[image], truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = self.model(**inputs)
        return outputs.image_embeds[0].numpy(), outputs.text_embeds[0].numpy()


def embed_samples(folder: Path, samples: pa.Table) -> pa.Table:
    """Embeddings of images and chains in ``EMBEDDING_SCHEMA``, under the model's name ``clip``.

    Args:
        samples: an index with the column ``chain`` added.
    """
    clip = Clip(folder)
    rows = []
    for row, data in zip(samples.to_pylist(), read_images(samples), strict=True):
        vectors = clip.embed(decode_image(row["id"], data), row["chain"])
        for kind, vector in zip(("image", "chain"), vectors, strict=True):
            rows.append(
                {"model": NAME, "id": row["id"], "domain": row["domain"], "kind": kind, "vector": vector}
            )
    return pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA)
