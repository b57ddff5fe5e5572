"""FlexAttention in the decoder: the layout's blocks that nobody looks at are not computed.

Of two branches that do not see one another, a dense mask has the kernel compute what it then hides. Here
the kernel gets the mask in blocks of 128 x 128 tokens and leaves out those that are hidden whole, which
causality makes of nearly half of all.

Loss and gradients equal those of the dense mask, for every family, by torch's own arithmetic on CPU and by
the kernels that it compiles on a GPU. On an H200 a step of InternVL3-8B's shape took 0.88 of the dense
mask's time at 824 tokens and 0.79 at 2,100 (``benchmarks/BENCHMARKS.md``). It is not the default, since no
whole run has had it on a GPU yet.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from rdmldg_ray.mtct.shared_prefix import visible


def use_flex_attention(model: PreTrainedModel) -> None:
    """Let the decoder compute attention by FlexAttention; the vision encoder keeps what it has.

    Args:
        model: the plain model of transformers.

    Raises:
        ValueError: for a decoder that has its attention built in.
    """
    decoder = model.get_decoder()
    if not decoder._supports_attention_backend:
        raise ValueError(
            f"model.attention 'flex' does not work with the decoder {type(decoder).__name__}, whose "
            "attention cannot be replaced, as that of Llama, Qwen2 and Qwen2.5-VL can; set it to 'sdpa'"
        )
    # Not by set_attn_implementation, which refuses all of Qwen2.5-VL for its vision encoder's sake:
    # https://github.com/huggingface/transformers/blob/v5.19.0/src/transformers/modeling_utils.py#L1697-L1702
    decoder.config._attn_implementation = "flex_attention"


def block_mask(segments: torch.Tensor) -> BlockMask:
    """(B, L) segments to the mask of ``layout.additive_mask`` in blocks, for any L."""

    def seen(row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return visible(segments[row, query], segments[row, key], query, key)

    rows, length = segments.shape
    return create_block_mask(seen, rows, None, length, length, device=segments.device)
