"""Data parallelism over processes of one thread each, which wait for each other once a step.

On a few cores this beats one process with as many threads, which wait for each other at every
operation, and suffer much more when other programs run.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def launch(work: Callable[[Any], None], world: int, options: Any) -> None:
    """Call ``work(options)`` in ``world`` processes and wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_start, (work, world, options, f"{folder}/store"), nprocs=world)


def _start(rank: int, work: Callable[[Any], None], world: int, options: Any, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    work(options)
    dist.barrier()
    dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Which of how many processes this one is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    _, world = rank_and_world()
    if world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / world)


def mixed_precision() -> torch.autocast:
    """bfloat16 where the processor has units for it (AMX), where it pays; float32 elsewhere."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.autocast("cpu", torch.bfloat16, enabled="amx_bf16" in flags)
