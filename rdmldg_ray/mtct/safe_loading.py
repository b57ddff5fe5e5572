"""Checkpoints of DeepSpeed without pickle's code: they come from storage, which others may write to.

DeepSpeed itself reads them with ``weights_only=False``; https://github.com/deepspeedai/DeepSpeed/pull/6751
https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/checkpoint_engine/torch_checkpoint_engine.py#L37
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

# What its shards hold besides tensors and plain values; none of them runs anything when it is made.
_HARMLESS = [LossScaler, ZeroStageEnum, fragment_address]
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_only() -> Iterator[None]:
    """Within the block ``torch.load`` takes data only, though DeepSpeed asks it to run whatever it reads.

    A file with anything else in it raises ``pickle.UnpicklingError``, before any of that is run.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
