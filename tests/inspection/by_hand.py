"""The forward pass written once more, from the weights alone, in float64: one text, head by head.

Nothing of gpt/model computes here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from gpt.model import GPT


def read_by_hand(model: GPT, tokens: list[int], both_ways: bool = False) -> SimpleNamespace:
    """(L, H, T, T) attention; (L + 1, T, C) streams; what layers add, (L, T, C); (L, T, n_inner)
    neurons; (T, V) logits."""
    config, T = model.config, len(tokens)
    w = {name: value.double() for name, value in model.state_dict().items()}
    x = w["embedding.token_embedding.weight"][tokens] * config.embedding_scale
    if config.position == "learned":
        x = x + w["embedding.position_embedding.weight"][:T]
    elif config.position == "sinusoidal":
        x = x * config.n_embd ** 0.5 + waves(T, config.n_embd)
    found = SimpleNamespace(attention=[], streams=[x], attended=[], fed=[], neurons=[])
    for i, window in enumerate(config.windows):
        of = f"blocks.{i}."
        attention, read = attend(w, of + "attention.", norm(w, of + "attention_norm", x, config),
                                 config, window, both_ways, i)
        found.attention.append(attention)
        found.attended.append(config.residual_scale * norm(
            w, of + "attention_post_norm", linear(w, of + "attention.out_proj", read), config))
        stream, x = x, x + found.attended[-1]
        own = "attention_norm" if config.residual == "parallel_one_norm" else "feedforward_norm"
        h = linear(w, of + "feedforward.up_proj",
                   norm(w, of + own, x if config.residual == "sequential" else stream, config))
        found.neurons.append(activated(h, config.mlp))
        found.fed.append(config.residual_scale * norm(
            w, of + "feedforward_post_norm",
            linear(w, of + "feedforward.down_proj", found.neurons[-1]), config))
        x = x + found.fed[-1]
        found.streams.append(x)
    found.logits = scores_by_hand(model, x)
    return SimpleNamespace(**{name: value if isinstance(value, Tensor) else torch.stack(value)
                              for name, value in vars(found).items()})


def scores_by_hand(model: GPT, x: Tensor) -> Tensor:
    """(…, C) -> (…, V)"""
    w = {name: value.double() for name, value in model.state_dict().items()}
    table = w.get("lm_head.weight", w["embedding.token_embedding.weight"])
    scores = model.config.logit_scale * norm(w, "final_norm", x, model.config) @ table.T
    return bent(scores + w.get("lm_head.bias", 0.0), model.config.logit_softcap)


def bent(scores, limit):
    return scores if limit is None else limit * (scores / limit).tanh()


def attend(w, of, x, config, window, both_ways, layer):
    """Weights, (H, T, T), and what heads read, (T, H · D)."""
    D, T = config.head_dim, len(x)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in linear(w, of + "qkv_proj", x).split(
        [config.n_head * D, config.n_kv_head * D, config.n_kv_head * D], dim=-1))
    if config.qk_norm:
        together = (-2, -1) if config.qk_norm == "across_heads" else (-1,)
        q, k = (z / (z.pow(2).mean(together, keepdim=True) + config.norm_eps).sqrt()
                * (w[of + name].view(*z.shape[-len(together):]) + (config.norm == "rmsnorm_1p"))
                for z, name in ((q, "q_norm.weight"), (k, "k_norm.weight")))
    if config.position == "rope" and config.rope_pattern[layer % len(config.rope_pattern)] == "R":
        q, k = turned(q, config, window), turned(k, config, window)
    attention, read = torch.zeros(config.n_head, T, T).double(), []
    for h in range(config.n_head):
        group = h // (config.n_head // config.n_kv_head)
        for t in range(T):
            reach = T if window is None else window
            seen = [s for s in range(T) if abs(t - s) < reach and (s <= t or both_ways)]
            scores = k[seen, group] @ q[t, h] * config.attention_scale
            attention[h, t, seen] = bent(scores, config.attention_softcap).softmax(0)
        read.append(attention[h] @ v[:, group])
    return attention, torch.cat(read, dim=-1)


def turned(z, config, window):
    """(T, heads, D): pairs (i, i + R/2) as complex numbers."""
    R, scaling, base, factor = config.rope_dim, config.rope_scaling, config.rope_base, 1.0
    if window is not None and config.local_rope_base is not None:
        scaling, base = None, config.local_rope_base
    if scaling is not None and scaling.kind == "yarn":
        factor = 0.1 * math.log(scaling.factor) + 1
    angles = []
    for i in range(R // 2):
        angle = base ** (-2 * i / R)
        if scaling is not None and scaling.kind == "yarn":
            first, last = (R * math.log(scaling.original_block_size / (turns * 2 * math.pi))
                           / (2 * math.log(base)) for turns in (scaling.beta_fast,
                                                                scaling.beta_slow))
            first, last = max(math.floor(first), 0), min(math.ceil(last), R - 1)
            slow = min(max((i - first) / (last - first), 0), 1)
            angle = angle * (1 - slow) + angle / scaling.factor * slow
        elif scaling is not None:
            turns = scaling.original_block_size * angle / (2 * math.pi)
            if turns < scaling.low_freq_factor:
                angle /= scaling.factor
            elif turns < scaling.high_freq_factor:
                kept = (turns - scaling.low_freq_factor) / (
                    scaling.high_freq_factor - scaling.low_freq_factor)
                angle = kept * angle + (1 - kept) * angle / scaling.factor
        angles.append(angle)
    places = torch.arange(len(z)).double()
    spin = torch.exp(1j * places[:, None, None] * torch.tensor(angles).double())
    pairs = torch.complex(z[..., :R // 2], z[..., R // 2:R]) * spin * factor
    return torch.cat((pairs.real, pairs.imag, z[..., R:]), dim=-1)


def waves(T, C):
    return torch.tensor([[(math.sin, math.cos)[c % 2](t / 10_000 ** ((c - c % 2) / C))
                          for c in range(C)] for t in range(T)]).double()


def norm(w, name, x, config):
    if name + ".weight" not in w:  # there is none here
        return x
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    weight = w[name + ".weight"] + (config.norm == "rmsnorm_1p")
    x = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight
    return x + w[name + ".bias"] if name + ".bias" in w else x


def linear(w, name, x):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def activated(h, mlp):
    if mlp in ("swiglu", "geglu"):
        gate, value = h.chunk(2, dim=-1)
        return (gate / (1 + (-gate).exp()) if mlp == "swiglu" else activated(gate, "tanh")) * value
    if mlp == "relu":
        return h.clamp_min(0)
    if mlp == "relu2":
        return h.clamp_min(0) ** 2
    if mlp == "gelu":
        return h * (1 + torch.erf(h / 2 ** 0.5)) / 2
    return h * (1 + ((2 / math.pi) ** 0.5 * (h + 0.044715 * h ** 3)).tanh()) / 2
