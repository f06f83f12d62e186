"""Known shapes by name, and one dial that sets a shape and its training.

A preset is a starting point: every field that a configuration gives itself wins. Vocabulary sizes
come from the tokenizer, and contexts are kept at what a small run trains on; the full published
context is a matter of model.block_size. Names count all parameters with the published vocabulary;
where nothing was published (qwen3-15m and qwen3-150m), with one of 32,000 tokens.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

PresetName = Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl",
                     "llama-15m", "llama-135m", "llama-1b",
                     "qwen3-15m", "qwen3-150m", "qwen3-0.6b"]


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    """Source: Radford et al. 2019, table 2, with the widths and depths that were published."""
    return {"block_size": 1024, "n_layer": n_layer, "n_head": n_head, "n_kv_head": n_head,
            "n_embd": n_embd, "position": "learned", "norm": "layernorm", "mlp": "gelu_tanh",
            "qk_norm": False, "bias": True, "tie_embeddings": True}


def _llama(n_layer: int, n_head: int, n_kv_head: int, n_embd: int, n_inner: int,
           **more: Any) -> dict[str, Any]:
    """RoPE, RMSNorm, SwiGLU, grouped heads. Source: arXiv:2302.13971, arXiv:2407.21783."""
    return {"block_size": 2048, "n_layer": n_layer, "n_head": n_head, "n_kv_head": n_kv_head,
            "n_embd": n_embd, "n_inner": n_inner, "norm_eps": 1e-5, "qk_norm": False,
            "tie_embeddings": True, **more}


def _qwen3(n_layer: int, n_head: int, n_kv_head: int, n_embd: int, n_inner: int,
           **more: Any) -> dict[str, Any]:
    """Llama's layout with QK-norm and heads of width 128. Source: arXiv:2505.09388."""
    return {"block_size": 2048, "n_layer": n_layer, "n_head": n_head, "n_kv_head": n_kv_head,
            "n_embd": n_embd, "head_dim": 128, "n_inner": n_inner, "rope_base": 1e6,
            "tie_embeddings": True, **more}


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),          # 124 M parameters with GPT-2's vocabulary
    "gpt2-medium": _gpt2(24, 16, 1024),  # 355 M
    "gpt2-large": _gpt2(36, 20, 1280),   # 774 M
    "gpt2-xl": _gpt2(48, 25, 1600),      # 1.56 B
    "llama-15m": _llama(6, 6, 6, 288, 768),     # of stories15M
    "llama-135m": _llama(30, 9, 3, 576, 1536),  # the shape of SmolLM-135M
    "llama-1b": _llama(16, 32, 8, 2048, 8192, rope_base=500_000.0,  # of Llama 3.2 1B
                       rope_scaling={"factor": 32.0, "original_block_size": 8192}),
    "qwen3-15m": _qwen3(7, 4, 2, 256, 768),
    "qwen3-150m": _qwen3(16, 8, 4, 768, 2304),
    "qwen3-0.6b": _qwen3(28, 16, 8, 1024, 3072),  # of Qwen3-0.6B
}

HEAD_DIM = 64
MAX_DEPTH = 1024
TOKENS_PER_PARAMETER = 20  # Source: Hoffmann et al. 2022 (arXiv:2203.15556), table 3


def shape_of(model: dict[str, Any]) -> dict[str, Any]:
    """The fields that `preset` or `depth` stand for among raw values; none if neither is sound."""
    preset, depth = model.get("preset"), model.get("depth")
    if isinstance(preset, str) and preset in PRESETS:
        return PRESETS[preset]
    return shape_of_depth(depth) if is_count(depth, MAX_DEPTH) else {}


def is_count(value: Any, most: int) -> TypeGuard[int]:
    """Whether a raw value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def shape_of_depth(depth: int) -> dict[str, Any]:
    """As deep as asked and 64 times as wide: 12 gives GPT-2's width, heads and depth."""
    return {"n_layer": depth, "n_head": depth, "n_embd": HEAD_DIM * depth}


def training_of_depth(depth: int) -> dict[str, int]:
    """How long a model of this depth learns.

    20 tokens for each of the 12 · n_layer · n_embd² parameters of its blocks. Batch size and
    learning rate need no entry: "auto" follows tokens and width.
    """
    return {"tokens": TOKENS_PER_PARAMETER * 12 * depth * (HEAD_DIM * depth) ** 2}
