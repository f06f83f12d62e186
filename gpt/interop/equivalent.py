"""The same function in the terms of standard architectures.

Some options of ours have no counterpart elsewhere but can be written into the weights: a residual
scale, sine and cosine positions, no positions, missing biases. What is rewritten here computes the
same logits, up to float rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.model import GPT
from gpt.model.embedding import sinusoids

State = dict[str, Tensor]


@torch.no_grad()
def standard_form(model: GPT, dtype: torch.dtype = torch.float32) -> GPT:
    """A copy of a model, in `dtype`, whose options are those of standard architectures."""
    fields = standard_fields(model.config)
    state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    _fold_residual_scale(state, model.config.residual_scale)
    if model.config.norm == "layernorm":
        _add_missing_biases(state)
        _write_down_positions(state, model.config)
    with torch.device("meta"):
        standard = GPT(ModelConfig(**fields))
    standard.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    return standard.eval()


def standard_fields(config: ModelConfig) -> dict[str, object]:
    """The options of the rewritten model."""
    fields = config.model_dump() | {"residual_scale": 1.0}
    if all(window is None or window >= config.block_size for window in config.windows):
        fields |= {"window": None, "window_pattern": "S"}
    elif None not in config.windows:
        fields["window_pattern"] = "S"
    if config.norm == "layernorm":
        fields["bias"] = True
        if config.position in ("sinusoidal", "none"):
            fields["position"] = "learned"
    return fields


def _fold_residual_scale(state: State, scale: float) -> None:
    """scale · (W x + b) = (scale · W) x + scale · b"""
    for name in state:
        if scale != 1.0 and (".out_proj." in name or ".down_proj." in name):
            state[name] = state[name] * scale


def _add_missing_biases(state: State) -> None:
    """A bias of zero is none."""
    for name in [name for name in state if name.endswith("weight") and "embedding" not in name
                 and "lm_head" not in name]:
        bias = name.removesuffix("weight") + "bias"
        state.setdefault(bias, torch.zeros(len(state[name])))


def _write_down_positions(state: State, config: ModelConfig) -> None:
    """Waves, or nothing at all, as a table of learned positions."""
    table = "embedding.token_embedding.weight"
    if config.position == "none":
        state["embedding.position_embedding.weight"] = torch.zeros(config.block_size, config.n_embd)
    elif config.position == "sinusoidal":
        positions = torch.arange(config.block_size)
        state["embedding.position_embedding.weight"] = sinusoids(positions, config.n_embd)
        amplitude = math.sqrt(config.n_embd)  # as in Embedding.forward
        state[table] = state[table] * amplitude
        if config.tie_embeddings:  # the scores come from the same table
            for kind in ("weight", "bias"):
                state[f"final_norm.{kind}"] = state[f"final_norm.{kind}"] / amplitude
