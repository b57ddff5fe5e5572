"""The output layer and the loss in one: -log p of each target, without logits of the whole vocabulary.

A micro-batch of 16 chains of 300 tokens has 3 GB of logits in float32 with a vocabulary of 151,674, and the
backward pass needs as much twice again. Here logits are made for some positions at a time, and are gone when
the next are made: what remains of them is -log p and its gradient with respect to the hidden state, which has
the width of the decoder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

IGNORED = -100
# Logits in float32 of so many values at a time: 256 MiB.
CHUNK = 2**26


class TargetLoss:
    """Has a model's output layer give -log p of the targets where it would give logits.

    In place of the layer's own ``forward``, so that what DeepSpeed hangs on the layer is called as ever, and
    parameters keep their names.
    """

    def __init__(self, model: PreTrainedModel):
        """Take over the output layer of a plain model of transformers."""
        self._layer: Any = model.get_output_embeddings()
        self._logits = self._layer.forward
        self._layer.forward = self._forward
        self._targets: torch.Tensor | None = None

    @contextmanager
    def of(self, targets: torch.Tensor) -> Iterator[None]:
        """Within the block the model's ``logits`` are (B, K): -log p in nats of the (B, K) ``targets``, in
        float32, and 0 where a target is ``IGNORED``."""
        self._targets = targets
        try:
            yield
        finally:
            self._targets = None

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._targets is None:
            return self._logits(hidden)
        flat, targets = hidden.flatten(0, 1), self._targets.flatten()
        if self._layer.weight.requires_grad:
            nll = torch.cat(
                [
                    checkpoint(self._nll, some, wanted, use_reentrant=False)
                    for some, wanted in _chunks(flat, targets, self._layer.out_features)
                ]
            )
        else:
            nll = _FrozenLayerLoss.apply(flat, self._logits, self._layer.weight, targets)
        return nll.view_as(self._targets)

    def _nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(
            self._logits(hidden).float(), targets, ignore_index=IGNORED, reduction="none"
        )


class _FrozenLayerLoss(torch.autograd.Function):
    """With weights that have no gradient, -log p and its gradient are found in one pass over the logits.

    The gradient of each position's -log p depends on its own hidden state alone, so what the backward pass
    brings for a position is a factor.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: Any, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        start = 0
        for some, wanted in _chunks(hidden, targets, len(weight)):
            logits = layer(some)
            probs = logits.float()
            kept = wanted != IGNORED
            index = wanted.where(kept, 0)[:, None]
            total = probs.logsumexp(dim=-1, keepdim=True)
            end = start + len(some)
            nll[start:end] = (total - probs.gather(1, index)).squeeze(1) * kept
            if gradient is not None:
                probs.sub_(total).exp_()
                probs.scatter_add_(1, index, torch.full_like(total, -1.0))
                probs *= kept[:, None]
                gradient[start:end] = probs.to(logits.dtype) @ weight.to(logits.dtype)
            start = end
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None, None


def _chunks(
    hidden: torch.Tensor, targets: torch.Tensor, vocabulary: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = max(1, CHUNK // vocabulary)
    return zip(hidden.split(size), targets.split(size), strict=True)
