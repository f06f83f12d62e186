"""One layer of the stack: attention, then feed-forward, each added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from gpt.configuration import ModelConfig
from gpt.model.attention import Attention
from gpt.model.cache import LayerCache
from gpt.model.feedforward import FeedForward
from gpt.model.norm import make_norm
from gpt.model.rope import Angles
from gpt.model.visibility import Visible


class Block(nn.Module):
    """Residual layer with norms before its two parts, behind them, or both.

    Source of norms before: Radford et al. 2019 (GPT-2), section 2.3; behind: OLMo 2,
    arXiv:2501.00656; both: Gemma 2, arXiv:2408.00118; side by side: GPT-J, Wang and Komatsuzaki
    2021.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        before, behind = config.norm_placement != "after", config.norm_placement != "before"
        one_norm = config.residual == "parallel_one_norm"
        self.attention_norm = make_norm(config) if before else nn.Identity()
        self.attention = Attention(config)
        self.attention_post_norm = make_norm(config) if behind else nn.Identity()
        self.feedforward_norm = make_norm(config) if before and not one_norm else nn.Identity()
        self.feedforward = FeedForward(config)
        self.feedforward_post_norm = make_norm(config) if behind else nn.Identity()
        self.residual, self.residual_scale = config.residual, config.residual_scale

    def forward(self, x: Tensor, rotation: Angles | None,
                cache: LayerCache | None = None, visible: Visible = None) -> Tensor:
        """(B, T, C) -> (B, T, C); the rest as in Attention."""
        normed = self.attention_norm(x)
        return self.behind(x, normed, self.attention(normed, rotation, cache, visible))

    def behind(self, x: Tensor, normed: Tensor, attended: Tensor) -> Tensor:
        """What follows once attention has read: the stream, itself normed, and what was read."""
        after = x.add(self.attention_post_norm(attended), alpha=self.residual_scale)
        read = {"sequential": after, "parallel": x, "parallel_one_norm": normed}[self.residual]
        made = self.feedforward_post_norm(self.feedforward(self.feedforward_norm(read)))
        return after.add(made, alpha=self.residual_scale)
