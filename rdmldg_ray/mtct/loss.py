"""The MTCT loss, as plain functions: of logits and targets, and of the targets' own losses."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

DIRECT, REASONING = 0, 1


@dataclass(frozen=True)
class PathwayLosses:
    """Loss of each of B samples; zeros for a pathway that was not laid out."""

    direct: torch.Tensor
    """(B,) -log p(label), in nats: the sum, or by choice the mean, over the label's tokens."""
    reasoning: torch.Tensor
    """(B,) mean over the chain's own tokens of -log p(token), in nats."""

    def weighted_sum(self, direct_weight: float, reasoning_weight: float) -> torch.Tensor:
        """Scalar: sum over samples of the weighted pathway losses; divide by the global batch."""
        return (direct_weight * self.direct + reasoning_weight * self.reasoning).sum()


def pathway_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    target_pathway: torch.Tensor,
    label_reduction: Literal["sum", "mean"],
) -> PathwayLosses:
    """Per-sample losses of both pathways (arXiv 2602.23777, the MTCT objective).

        L = (1/B) sum_i [ -log p(y_i | x_i, q_cls) - (1/T_i) sum_t log p(r_it | r_i<t, x_i, q_reason) ]

    The chain's mean is over *its own* T_i tokens, taken before the mean over the batch, so that
    neither padding nor the length of a neighbour changes a sample's weight.

    Args:
        logits: (B, K, V) at the positions that predict a target.
        targets: (B, K) token ids, -100 where a row predicts nothing.
        target_pathway: (B, K) DIRECT, REASONING, or -1 where a row predicts nothing.
        label_reduction: how the direct pathway's tokens are reduced.
    """
    token_losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    ).view_as(targets)
    return reduce_token_losses(token_losses, target_pathway, label_reduction)


def reduce_token_losses(
    token_losses: torch.Tensor, target_pathway: torch.Tensor, label_reduction: Literal["sum", "mean"]
) -> PathwayLosses:
    """The same from (B, K) -log p of each target, in nats; 0 where a row predicts nothing."""

    def reduce(pathway: int, reduction: str) -> torch.Tensor:
        mine = target_pathway == pathway
        total = (token_losses * mine).sum(dim=1)
        return total / mine.sum(dim=1).clamp(min=1) if reduction == "mean" else total

    return PathwayLosses(direct=reduce(DIRECT, label_reduction), reasoning=reduce(REASONING, "mean"))
