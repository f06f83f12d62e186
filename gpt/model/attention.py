"""Self-attention: every position reads itself and what came before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import ModelConfig
from gpt.model.cache import LayerCache
from gpt.model.norm import make_head_norm
from gpt.model.rope import Angles, rotate
from gpt.model.visibility import Visible


class Attention(nn.Module):
    """Several heads of causal query/key/value attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim, self.dropout_p = config.head_dim, config.dropout
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        q_width, kv_width = config.n_head * self.head_dim, config.n_kv_head * self.head_dim
        self.qkv_widths = (q_width, kv_width, kv_width)
        self.qkv_proj = nn.Linear(config.n_embd, sum(self.qkv_widths),
                                  bias="qkv_proj" in config.biases)
        self.out_proj = nn.Linear(q_width, config.n_embd, bias="out_proj" in config.biases)
        self.q_norm = make_head_norm(config, config.n_head)
        self.k_norm = make_head_norm(config, config.n_kv_head)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Angles | None,
                cache: LayerCache | None = None, visible: Visible = None) -> Tensor:
        """Let each position read itself and everything before it.  (B, T, C) -> (B, T, C)

        rotation: cosine and sine of each position (RoPE), or None.
        cache: keys and values of the tokens before x; None when x is the whole sequence.
        visible: the keys that each query may read, as gpt/model/visibility.py says it.
        Source: Vaswani et al. 2017, section 3.2; grouped key/value heads, arXiv:2305.13245;
        QK-norm, arXiv:2010.04245.
        """
        B, T, _ = x.shape
        q, k, v = self.qkv_proj(x).split(self.qkv_widths, dim=-1)
        # Under autocast the projection is in fewer bits than x; norm and rotation are not.
        q = self.q_norm(q.view(B, T, -1, self.head_dim).to(x.dtype))  # (B, T, n_head, D)
        k = self.k_norm(k.view(B, T, -1, self.head_dim).to(x.dtype))  # (B, T, n_kv_head, D)
        v = v.view(B, T, -1, self.head_dim).transpose(1, 2)           # (B, n_kv_head, T, D)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = q.transpose(1, 2).to(v.dtype), k.transpose(1, 2).to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)                                 # (B, n_kv_head, S, D)
        y = self._attend(q, k, v, visible)                            # (B, n_head, T, D)
        return self.dropout(self.out_proj(y.transpose(1, 2).flatten(2)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
        """(B, n_head, T, D), twice (B, n_kv_head, S, D) -> (B, n_head, T, D)"""
        if visible is not None and not isinstance(visible, Tensor):
            from gpt.model.blockwise import attend_blockwise  # imports torch's compiler
            return attend_blockwise(q, k, v, visible, self.scale, self.softcap)
        if self.softcap is not None:
            return self._attend_softly(q, k, v, visible)
        _, heads, T, _ = q.shape
        causal = visible is None
        if T == 1:  # the heads of a group read the same keys, as queries of one head would
            causal = False  # not `T > 1`, which is no bool where compiled code serves every T
            q = q.reshape(len(q), k.size(1), -1, self.head_dim)
        elif visible is not None or (q.is_cuda and q.dtype == torch.float32):
            # CUDA's fast kernels of float32, and deterministic ones with a mask, know no groups.
            k, v = (x.repeat_interleave(heads // x.size(1), dim=1) for x in (k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal,
            enable_gqa=q.size(1) != k.size(1), scale=self.scale,
            dropout_p=self.dropout_p if self.training else 0.0)
        return y.reshape(len(y), heads, T, self.head_dim)

    def _attend_softly(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """The same with scores that are bent, which torch's kernels do not know.

        Source: Gemma 2, arXiv:2408.00118, section 2.
        """
        assert self.softcap is not None
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        scores = self.softcap * torch.tanh(q @ k.mT * (self.scale / self.softcap))
        if visible is None and q.size(2) > 1:
            visible = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)  # (B, n_head, T, S)
        return F.dropout(weights, self.dropout_p, self.training) @ v
