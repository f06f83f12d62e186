"""The same function in the terms of standard architectures.

Some options of ours have no counterpart elsewhere but can be written into the weights: a residual
scale, sine and cosine positions, no positions, missing biases. What is rewritten here computes the
same logits, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures import (
    ARCHITECTURES,
    COMMON,
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN3,
    Architecture,
    refuse,
)
from gpt.model import GPT
from gpt.model.embedding import sinusoids

State = dict[str, Tensor]


@torch.no_grad()
def standard_form(model: GPT, dtype: torch.dtype = torch.float32,
                  among: Sequence[Architecture] | None = None) -> GPT:
    """A copy of a model, in `dtype`, whose options are those of a standard architecture. Raises
    UserError as `standard` does."""
    _, config = standard(model.config, among)
    state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        written = GPT(config)
    for name, tensor in written.state_dict().items():
        if name.endswith("bias") and name not in state:  # a bias of zero is none
            state[name] = torch.zeros(tensor.shape)
    if config.residual_scale != model.config.residual_scale:
        _fold_residual_scale(state, model.config.residual_scale)
    if config.position != model.config.position:
        _write_down_positions(state, model.config)
    written.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    return written.eval()


def standard(config: ModelConfig, among: Sequence[Architecture] | None = None
             ) -> tuple[Architecture, ModelConfig]:
    """The architecture that a model is exported as, and its options there.

    The one that config.model_type names; else one that many tools read, if the model can be written
    so; else any. among: those of llama.cpp alone, whatever the configuration names.
    Raises UserError naming what the nearest one cannot express.
    """
    plain, rewritten = (ModelConfig(**fields) for fields in (_simple_fields(config),
                                                             _rewritten_fields(config)))
    if among is not None:
        candidates = [(one, rewritten) for one in among]
    elif config.model_type is not None:
        candidates = [(_named(config.model_type), each) for each in (plain, rewritten)]
    else:
        rare = [one for one in ARCHITECTURES.values() if one not in COMMON]
        candidates = [(one, rewritten) for one in COMMON] + [
            (one, each) for one in rare for each in (plain, rewritten)]
    for architecture, found in candidates:
        if not architecture.refusals(found):
            return architecture, found.model_copy(update={"model_type": architecture.model_type})
    nearest, found = candidates[0] if config.model_type and among is None else (
        _nearest(config), rewritten)
    whose = "Hugging Face" if among is None else "llama.cpp"
    refuse(nearest.refusals(found), f"{whose}'s {nearest.model_type}")
    raise AssertionError("what refuses nothing was returned")


def _nearest(config: ModelConfig) -> Architecture:
    if config.norm == "layernorm":
        return GPT2
    if config.qk_norm:
        return QWEN3
    return LLAMA if config.window is None else MISTRAL


def _named(model_type: str) -> Architecture:
    if model_type not in ARCHITECTURES:
        raise UserError(f"model.model_type={model_type} is none of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]


def _simple_fields(config: ModelConfig) -> dict[str, object]:
    """The same options, without windows that hide nothing."""
    fields: dict[str, object] = config.model_dump()
    if config.local_rope_base is None and all(
            window is None or window >= config.block_size for window in config.windows):
        fields |= {"window": None, "window_pattern": "S"}
    elif None not in config.windows:
        fields["window_pattern"] = "S"
    return fields


def _rewritten_fields(config: ModelConfig) -> dict[str, object]:
    """The options of a model whose weights say more."""
    fields = _simple_fields(config) | {"residual_scale": 1.0}
    if config.norm == "layernorm":
        fields["bias"] = True
        if config.position in ("sinusoidal", "none"):
            fields["position"] = "learned"
    return fields


def _fold_residual_scale(state: State, scale: float) -> None:
    """scale · (W x + b) = (scale · W) x + scale · b"""
    for name in state:
        if ".out_proj." in name or ".down_proj." in name:
            state[name] = state[name] * scale


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
