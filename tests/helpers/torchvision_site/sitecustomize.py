"""Lets torchvision's CUDA build be imported beside the CPU build of torch, in this and every child process.

It registers kernels for two operators that only its compiled part declares.
https://github.com/pytorch/vision/issues/9085
"""

import importlib.util

if importlib.util.find_spec("torchvision"):
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
