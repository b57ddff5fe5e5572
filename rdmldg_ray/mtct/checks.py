"""What ends a step of training, said so that the user can mend it: where, which samples, what to change.

All of it is ValueError, the user's to mend, which Ray Train does not retry.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rdmldg_ray.mtct.loss import PathwayLosses


class MemoryExhaustedError(ValueError):
    """Memory has run out in a forward or backward pass; fewer images at once may do."""


# What torch's allocator for CPUs says; on GPUs there is a class for it.
_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def check_images(step: int, ids: Sequence[str], images: Sequence[bytes | None]) -> None:
    """Raise ValueError, naming step and samples, when there are rows without an image.

    A forward pass without images would skip the vision encoder on its worker alone, and all workers
    would wait for each other for ever.
    """
    without = [sample_id for sample_id, image in zip(ids, images, strict=True) if not image]
    if without:
        raise ValueError(
            f"step {step}: {len(without)} of {len(ids)} samples have no image: {', '.join(without)}; ingest "
            "the data set again, which rejects and lists such rows"
        )


def check_finite(losses: PathwayLosses, step: int, ids: Sequence[str]) -> None:
    """Raise ValueError, naming step and samples, when a loss is not a finite number."""
    finite = torch.isfinite(losses.direct) & torch.isfinite(losses.reasoning)
    if not finite.all():
        wrong = [sample_id for sample_id, ok in zip(ids, finite.tolist(), strict=True) if not ok]
        raise ValueError(
            f"step {step}: the loss is not finite for {', '.join(wrong)}; lower the learning rate, or "
            "look at these images and chains"
        )


@contextmanager
def memory_explained(step: int, ids: Sequence[str], length: int) -> Iterator[None]:
    """Around a forward and backward pass over samples laid out to ``length`` tokens.

    Raises:
        MemoryExhaustedError: in the place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_OUT_OF_MEMORY not in str(error):
            raise
        raise MemoryExhaustedError(
            f"step {step}: out of memory with {len(ids)} images of up to {length} tokens each: "
            f"{', '.join(ids)}"
        ) from error
