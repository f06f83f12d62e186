"""How documents, windows and plain causal attention are read best: milliseconds of a forward and a
backward pass of one layer's attention, at GPT-2's 124M shape in bfloat16.

mask: scaled dot-product attention with a (T, T) mask; blocks: FlexAttention with the model's own
block mask, made anew each time; varlen: torch.nn.attention.varlen, which gets where documents begin
for nothing; flash and cudnn: causal attention without a mask, by kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.results import Results
from gpt.model.blockwise import attend_blockwise, visible_blocks
from gpt.model.visibility import visible_keys, visible_within

ROWS, HEADS, WIDTH = 16, 12, 64
DOCUMENTS, WINDOW = 4, 256  # a row; tokens


def measure(bench: Bench, results: Results) -> None:
    """Every way of every kind, at two lengths."""
    for length in bench.choose((1024, 4096), (512,)):
        for kind in ("causal", "documents", "window"):
            for way, build in WAYS.items():
                arm = f"{kind} {length}, {way}"
                if way in ("flash", "cudnn") and kind != "causal":
                    continue
                if way in ("blocks", "varlen") and kind == "causal":
                    continue
                if way == "varlen" and find_spec("torch.nn.attention.varlen") is None:
                    results.leave_out(arm, "torch.nn.attention.varlen is not in this torch")
                elif way in ("varlen", "flash", "cudnn") and bench.device.type != "cuda":
                    results.leave_out(arm, "it needs CUDA")
                else:
                    results.measure(arm, lambda build=build, kind=kind, length=length: (  # type: ignore[misc]
                        timed(bench, build, kind, length)))


def timed(bench: Bench, build: Callable[..., Any], kind: str, length: int) -> dict[str, Any]:
    """Forward and backward."""
    bench.forget()
    rows = max(1, bench.choose(ROWS, 2) * 1024 // max(1024, length))
    q, k, v = (torch.randn(rows, HEADS, length, WIDTH, device=bench.device,
                           dtype=torch.bfloat16).requires_grad_(bench.device.type == "cuda")
               for _ in "qkv")
    segments = (torch.arange(length, device=bench.device) * DOCUMENTS // length).expand(rows, -1)
    read = build(kind, segments.contiguous())

    def both() -> None:
        y = read(q, k, v)
        if y.requires_grad:
            torch.autograd.grad(y, (q, k, v), y.detach())

    return {"milliseconds": 1e3 * bench.seconds(both, times=10, warm_up=3), "rows": rows}


def by_mask(kind: str, segments: Tensor) -> Callable[..., Tensor]:
    """The definition."""
    T = segments.size(1)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = (visible_within(segments, None) if kind == "documents" else
                   visible_keys(T, T, WINDOW if kind == "window" else None, q.device))
        return F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None)

    return read


def by_blocks(kind: str, segments: Tensor) -> Callable[..., Tensor]:
    """As compiled training reads on CUDA."""
    T = segments.size(1)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        blocks = visible_blocks(T, WINDOW if kind == "window" else None, q.device,
                                segments if kind == "documents" else None)
        assert blocks is not None
        return attend_blockwise(q, k, v, blocks)

    return torch.compile(read) if segments.is_cuda else read


def by_lengths(kind: str, segments: Tensor) -> Callable[..., Tensor]:
    """Rows as one long row, and where its documents begin."""
    from torch.nn.attention.varlen import varlen_attn
    rows, T = segments.shape
    per_row = DOCUMENTS if kind == "documents" else 1
    begins = torch.arange(0, rows * T + 1, T // per_row, dtype=torch.int32, device=segments.device)
    window = (WINDOW - 1, 0) if kind == "window" else (-1, 0)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
        read = varlen_attn(*flat, begins, begins, T // per_row, T // per_row, window_size=window)
        return read.view(rows, T, HEADS, WIDTH).transpose(1, 2)

    return read


def by_kernel(backend: SDPBackend) -> Callable[[str, Tensor], Callable[..., Tensor]]:
    """Causal attention with one of torch's kernels."""
    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return lambda kind, segments: read


WAYS: dict[str, Callable[[str, Tensor], Callable[..., Tensor]]] = {
    "mask": by_mask, "blocks": by_blocks, "varlen": by_lengths,
    "flash": by_kernel(SDPBackend.FLASH_ATTENTION), "cudnn": by_kernel(SDPBackend.CUDNN_ATTENTION)}
