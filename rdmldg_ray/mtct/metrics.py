"""What a step of training costs and yields: rates, memory, utilisation, and the line that says so."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Peak FLOP/s of one device in bfloat16, dense, from its maker's data sheet. The first name that the
# device's own begins with holds, so what is more special stands first.
_PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
}
_GIB = 2**30


def peak_flops(device: str) -> float | None:
    """A device's peak in bfloat16 in FLOP/s by the name CUDA gives it; None where it is not known."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if device.startswith(name)), None)


def passes_of(model: nn.Module) -> float:
    """A training step's operations over those of its forward pass.

    A backward pass needs as many for the gradients of activations, and again as many for those of
    weights, of which only the trained ones have any.
    """
    trained = sum(_size(p) for p in model.parameters() if p.requires_grad)
    return 2 + trained / sum(map(_size, model.parameters()))


class Meter:
    """Rates since the first batch, the same on every rank.

    What the stream takes to start is told apart, as ``stream_start_s``: it is no wait of a step's.

    MFU is the share of the devices' peak that the model itself needs, neither padding nor recomputed
    activations included. The forward pass's operations are counted once, on the first forward pass, if
    they are ``countable``, and multiplied by ``passes_of`` the model.
    """

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        model: nn.Module,
        device: torch.device,
        countable: bool = True,
    ):
        self.first_step, self.total_steps = first_step, total_steps
        self.device = device
        self.on_gpu = device.type == "cuda"
        known = self.on_gpu and countable
        self.peak = peak_flops(torch.cuda.get_device_name(device)) if known else None
        self.passes = passes_of(model)
        self.flops_per_token: float | None = None
        self.created = self.wanted = time.perf_counter()
        self.started: float | None = None
        self.waited = self.samples = self.tokens = self.laid_out = 0.0

    def data_wanted(self) -> None:
        """The step is done and asks for the next batch."""
        self.wanted = time.perf_counter()

    def data_arrived(self) -> None:
        """The batch that was asked for is there."""
        now = time.perf_counter()
        if self.started is None:
            self.started = now
        else:
            self.waited += now - self.wanted

    @contextmanager
    def forward(self, laid_out: int) -> Iterator[None]:
        """Around a forward pass over so many tokens, padding included: counts the first one's operations."""
        if self.peak is None or self.flops_per_token is not None:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops_per_token = self.passes * counter.get_total_flops() / laid_out

    def step_done(self, step: int, samples: int, tokens: float, laid_out: float) -> dict[str, float | None]:
        """What is to be logged with a step; a collective operation.

        Args:
            step: how many steps are done.
            samples: images in this step, over all workers.
            tokens: tokens in this step, over all workers.
            laid_out: the same with padding.
        """
        assert self.started is not None
        self.samples += samples
        self.tokens += tokens
        self.laid_out += laid_out
        # One rank that waits makes all wait, and one that is out of memory ends all.
        worst = torch.tensor([self.waited, self._memory_gib()], dtype=torch.float64, device=self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        waited, memory = worst.tolist()
        elapsed = time.perf_counter() - self.started
        return {
            "samples_per_s": self.samples / elapsed,
            "tokens_per_s": self.tokens / elapsed,
            "mfu": self._mfu(elapsed),
            "memory_gib": memory,
            "padding_share": 1 - self.tokens / self.laid_out,
            "data_wait_share": waited / elapsed,
            "stream_start_s": self.started - self.created,
            "eta_s": elapsed / (step - self.first_step) * (self.total_steps - step),
            "resumed_at": self.first_step,
        }

    def _mfu(self, elapsed: float) -> float | None:
        if self.peak is None or self.flops_per_token is None:
            return None
        return self.flops_per_token * self.tokens / elapsed / (self.peak * dist.get_world_size())

    def _memory_gib(self) -> float:
        """Most memory held so far: the device's by tensors, or on CPU the process's."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device) / _GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def describe(metrics: dict[str, float | None]) -> str:
    """A step's metrics as one line for people."""
    known = {name: value for name, value in metrics.items() if value is not None}
    mfu = f"{known['mfu']:.1%}" if "mfu" in known else "unknown"
    minutes, seconds = divmod(round(known["eta_s"]), 60)
    return (
        f"loss direct {known['loss_direct']:.3f} reasoning {known['loss_reasoning']:.3f}, "
        f"lr {known['learning_rate']:.1e}, {known['samples_per_s']:.1f} images/s, "
        f"{known['tokens_per_s']:,.0f} tokens/s, MFU {mfu}, {known['memory_gib']:.1f} GiB, "
        f"{known['data_wait_share']:.1%} waiting for data, ETA {minutes}:{seconds:02d}"
    )


def json_line(metrics: dict[str, float | None]) -> str:
    """A step's metrics as a line of ``metrics.jsonl``; null for what is not known."""
    rounded = {name: None if value is None else round(value, 6) for name, value in metrics.items()}
    return json.dumps(rounded) + "\n"


def _size(parameter: nn.Parameter) -> int:
    # ZeRO 3 leaves an empty tensor in place of a parameter and its size beside it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
