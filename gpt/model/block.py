"""One layer of the stack: attention, then feed-forward, each added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from gpt.config import ModelConfig
from gpt.model.attention import RMS_EPS, Attention
from gpt.model.cache import LayerCache
from gpt.model.feedforward import FeedForward

LAYERNORM_EPS = 1e-5  # as in GPT-2


def make_norm(config: ModelConfig) -> nn.Module:
    """The configured normalisation over the residual stream's width."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=LAYERNORM_EPS, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=RMS_EPS)


class Block(nn.Module):
    """Pre-norm residual layer.  Source: Radford et al. 2019 (GPT-2), section 2.3."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None,
                cache: LayerCache | None = None, visible: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); the rest as in Attention."""
        x = x + self.attention(self.attention_norm(x), rotation, cache, visible)
        return x + self.feedforward(self.feedforward_norm(x))
