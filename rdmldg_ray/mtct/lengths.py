"""Chains that do not fit the model, found before training would meet them one by one."""

import pyarrow as pa

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.loading import load_processor
from rdmldg_ray.mtct.collate import answer_length, pathway_branches
from rdmldg_ray.storage import read_images

_AT_ONCE = 16


def long_samples(training_set: pa.Table, class_names: list[str], config: Config) -> list[tuple[str, int]]:
    """Samples whose prompt and answer are longer than ``model.max_length``, each with its tokens.

    Args:
        training_set: an index with a column ``chain``.
    """
    model = config.model
    prompts = PathwayPrompts(load_processor(model_folder(model.path)), class_names, model.mm_processor_kwargs)
    found = []
    for start in range(0, len(training_set), _AT_ONCE):
        part = training_set.slice(start, _AT_ONCE)
        rows = part.to_pylist()
        asked = [prompts.asking(row) for row in rows]
        images = [decode_image(row["id"], image) for row, image in zip(rows, read_images(part), strict=True)]
        prefixes = prompts.encode(images, asked).prefixes
        for row, prefix, own in zip(rows, prefixes, asked, strict=True):
            branches = pathway_branches(config.mtct.weights, row["label"], row["chain"], own)
            tokens = len(prefix) + answer_length(branches)
            if tokens > model.max_length:
                found.append((row["id"], tokens))
    return found
