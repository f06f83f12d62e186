"""Normalisation, of the residual stream and of queries and keys."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import ModelConfig


class RMSNorm1p(nn.RMSNorm):
    """RMSNorm that multiplies by 1 + weight; weights begin at zero.

    Source: Gemma Team 2024, arXiv:2403.08295, and its published code.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> the same"""
        weight = 1 + self.weight.float()  # in half precision, the 1 would leave it few digits
        return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(x.dtype)


class ScaledRMSNorm(nn.RMSNorm):
    """RMSNorm times a number: what comes last, so that scores are multiplied with it.

    Source: Granite's published code (logits_scaling).
    """

    def __init__(self, width: int, eps: float, scale: float):
        super().__init__(width, eps=eps)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> the same"""
        return super().forward(x) * self.scale


class AcrossHeads(nn.RMSNorm):
    """RMSNorm over the numbers of all heads together.  Source: OLMo 2, arXiv:2501.00656."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, D) -> the same"""
        return super().forward(x.flatten(-2)).view_as(x)


def make_norm(config: ModelConfig) -> nn.Module:
    """The configured normalisation over the residual stream's width."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias="norm" in config.biases)
    return _rms_norm(config)(config.n_embd, eps=config.norm_eps)


def make_last_norm(config: ModelConfig) -> nn.Module:
    """That before the output layer."""
    if config.logit_scale != 1.0:
        return ScaledRMSNorm(config.n_embd, config.norm_eps, config.logit_scale)
    return make_norm(config)


def make_head_norm(config: ModelConfig, heads: int) -> nn.Module:
    """That of queries, or keys: so many heads of them."""
    if config.qk_norm == "across_heads":
        return AcrossHeads(heads * config.head_dim, eps=config.norm_eps)
    return _rms_norm(config)(config.head_dim, eps=config.norm_eps) if config.qk_norm else (
        nn.Identity())


def _rms_norm(config: ModelConfig) -> Any:
    return RMSNorm1p if config.norm == "rmsnorm_1p" else nn.RMSNorm
