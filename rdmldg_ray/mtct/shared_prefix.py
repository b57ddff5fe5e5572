"""The shared-prefix layout: one sequence for both pathways of an image.

    [ image, question, options | direct tail, label | reasoning tail, chain ]
      prefix (segment 0)         branch 1             branch 2

Each branch sees the prefix and itself, never the other branch, and its positions go on from the
prefix's end. Loss and gradients equal those of two separate sequences, while the vision encoder
and the prefix run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_PADDING = -1
_PREFIX = 0


@dataclass(frozen=True)
class Branch:
    """One pathway after the prefix: the prompt's remaining tokens, then the target's."""

    pathway: int
    tail: list[int]
    target: list[int]


@dataclass(frozen=True)
class Layout:
    """A batch of B laid-out sequences, padded on the right to length L, with K predicted positions.

    Logits are needed at the K positions ``keep`` only: those from which some row predicts a target.
    """

    input_ids: torch.Tensor
    """(B, L) token ids."""
    position_ids: torch.Tensor
    """(B, L) positions; they restart at the prefix's end for each branch."""
    segments: torch.Tensor
    """(B, L) 0 for the prefix, 1, 2, ... for branches, -1 for padding."""
    keep: torch.Tensor
    """(K,) sorted positions at which logits are computed."""
    targets: torch.Tensor
    """(B, K) the token that the logits at ``keep`` predict; -100 where there is none."""
    target_pathway: torch.Tensor
    """(B, K) the pathway that the target belongs to; -1 where there is none."""


def lay_out(prefixes: Sequence[list[int]], branches: Sequence[Sequence[Branch]], pad_id: int) -> Layout:
    """Lay out a batch: ``prefixes[i]`` followed by each of ``branches[i]``."""
    rows = [_row(prefix, row) for prefix, row in zip(prefixes, branches, strict=True)]
    length = max(len(row.ids) for row in rows)

    def padded(name: str, filler: int) -> torch.Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([v + [filler] * (length - len(v)) for v in values])

    targets = padded("targets", -100)
    keep = (targets != -100).any(dim=0).nonzero().squeeze(1)
    return Layout(
        input_ids=padded("ids", pad_id),
        position_ids=padded("positions", 0),
        segments=padded("segments", _PADDING),
        keep=keep,
        targets=targets[:, keep],
        target_pathway=padded("pathways", -1)[:, keep],
    )


def additive_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, L) segments to a (B, 1, L, L) mask: 0 where a query may look, the dtype's least value elsewhere."""
    place = torch.arange(segments.shape[1], device=segments.device)
    seen = visible(segments[:, :, None], segments[:, None, :], place[:, None], place)
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def visible(
    query_segment: torch.Tensor, key_segment: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """Whether the token at place ``query`` may look at the one at ``key``; shapes broadcast.

    Padding sees the prefix like a branch of its own: a row without any visible key would be NaN.
    """
    return (key <= query) & ((key_segment == _PREFIX) | (key_segment == query_segment))


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[int]
    pathways: list[int]


def _row(prefix: list[int], branches: Sequence[Branch]) -> _Row:
    start = len(prefix)
    row = _Row(list(prefix), list(range(start)), [_PREFIX] * start, [-100] * start, [-1] * start)
    for segment, branch in enumerate(branches, start=1):
        assert branch.tail and branch.target, "a branch needs a prompt tail and a target"
        ids = branch.tail + branch.target
        row.ids += ids
        row.positions += range(start, start + len(ids))
        row.segments += [segment] * len(ids)
        # The token before a target token predicts it; the last token predicts nothing.
        predicted = len(branch.tail) - 1
        row.targets += [-100] * predicted + branch.target + [-100]
        row.pathways += [-1] * predicted + [branch.pathway] * len(branch.target) + [-1]
    return row
