"""One layer of the stack: attention, then feed-forward, each added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from gpt.configuration import ModelConfig
from gpt.model.attention import Attention
from gpt.model.cache import LayerCache
from gpt.model.feedforward import FeedForward
from gpt.model.visibility import Visible


def make_norm(config: ModelConfig) -> nn.Module:
    """The configured normalisation over the residual stream's width."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)


class Block(nn.Module):
    """Pre-norm residual layer.  Source: Radford et al. 2019 (GPT-2), section 2.3."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.residual_scale = config.residual_scale

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None,
                cache: LayerCache | None = None, visible: Visible = None) -> Tensor:
        """(B, T, C) -> (B, T, C); the rest as in Attention."""
        heard = self.attention(self.attention_norm(x), rotation, cache, visible)
        x = x.add(heard, alpha=self.residual_scale)
        return x.add(self.feedforward(self.feedforward_norm(x)), alpha=self.residual_scale)
