"""How large a model is, how much arithmetic a token costs, and how much of it is kept."""

from __future__ import annotations

import torch
from torch import nn

from gpt.configuration import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.visibility import within_reach


def parameter_count(model: nn.Module) -> int:
    """Distinct parameters; a tied output layer counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: GPT, sequence_tokens: int | None = None) -> int:
    """Model FLOPs to train on one token of a sequence: forward, and twice that backward.

    6 N + 12 · n_layer · (n_head · head_dim) · T, where N counts the parameters that multiply: not
    the position table, and not an untied token table, from which vectors are only looked up. In a
    layer that slides, T is at most its window. Causal masking, which halves the attention's share,
    is not deducted, as is the custom.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    config = model.config
    T = sequence_tokens or config.block_size
    reach = sum(within_reach(T, 1, window) for window in config.windows)
    looked_up = 0
    if config.position == "learned":
        looked_up += config.block_size * config.n_embd
    if not config.tie_embeddings:
        looked_up += model.embedding.token_embedding.weight.numel()
    multiplied = parameter_count(model) - looked_up
    return 6 * multiplied + 12 * config.n_head * config.head_dim * reach


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that a token's keys and values take in generation: in every layer, two vectors for each
    head that has some."""
    return 2 * config.n_layer * config.n_kv_head * config.head_dim * dtype.itemsize


def activation_bytes(model: ModelConfig, recompute: bool) -> int:
    """Bytes kept per token for the backward pass, in float32: an estimate on the safe side.

    Per layer about fourteen vectors of n_embd and four of n_inner, and two around the layers; four
    more where norms stand on both sides. With attention_softcap, scores as they are bent and as
    weights, and keys and values of all heads. With activations recomputed, a vector per layer, and
    all of that for one.
    """
    around, per_layer = 2 * model.n_embd, 14 * model.n_embd + 4 * model.n_inner
    if model.norm_placement == "both":
        per_layer += 4 * model.n_embd
    if model.attention_softcap is not None:
        per_layer += 2 * model.n_head * (model.block_size + model.head_dim)
    if recompute:
        return 4 * (around + model.n_layer * model.n_embd + per_layer)
    return 4 * (around + model.n_layer * per_layer)
