"""The masks of visibility.py as blocks, for FlexAttention: where no key of a block may be read,
nothing is computed, and no (T, T) mask stands in memory.

For compiled training steps on CUDA: uncompiled, FlexAttention is slower than a mask, and on a
processor it has no backward pass.
Source: Dong et al. 2024 (arXiv:2412.05496).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt.configuration import ModelConfig

SMALLEST_HEAD = 16  # of FlexAttention's kernels


def reads_blockwise(config: ModelConfig, device: torch.device) -> bool:
    """Whether compiled training steps of a model can do without masks. Dropout of attention's
    weights is what FlexAttention does not have."""
    return (device.type == "cuda" and not config.dropout and config.head_dim >= SMALLEST_HEAD)


def visible_blocks(T: int, window: int | None, device: torch.device, segments: Tensor | None = None,
                   prompts: Tensor | None = None, queries: slice | None = None,
                   keys: slice | None = None) -> BlockMask | None:
    """What `visible_keys(T, T, window)` or, with segments, `visible_within` says, as blocks.

    queries, keys: the stretches of a row that read and that are read; None: all T tokens.
    None where attention is causal and no more.
    """
    queries, keys = queries or slice(0, T), keys or slice(0, T)
    if segments is None and prompts is None and (window is None or window >= T) and queries == keys:
        return None

    def may_read(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query + queries.start, key + keys.start
        visible = query >= key
        if prompts is not None:
            visible = visible | (prompts[b, query] & prompts[b, key])
        if segments is not None:
            visible = visible & (segments[b, query] == segments[b, key])
        if window is not None:
            visible = visible & ((query - key).abs() < window)
        return visible

    rows = next((each.size(0) for each in (segments, prompts) if each is not None), None)
    return create_block_mask(may_read, rows, None, queries.stop - queries.start,
                             keys.stop - keys.start, device)


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, visible: BlockMask, scale: float,
                     softcap: float | None = None) -> Tensor:
    """Attention to visible keys.  (B, H, T, D), twice (B, n_kv_head, S, D) -> (B, H, T, D)

    scale, softcap: of the scores, as in Attention.
    """
    def bent(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    # On Hopper, Inductor's choice for such heads leaves too few registers for the mask.
    options = {"num_warps": 8} if q.size(3) == 64 and q.element_size() == 2 else None
    read = flex_attention(q, k, v, None if softcap is None else bent, visible, scale,
                          enable_gqa=q.size(1) != k.size(1),
                          kernel_options=options)  # type: ignore[arg-type]
    assert isinstance(read, Tensor)
    return read
