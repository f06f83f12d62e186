"""The same function in the terms of standard architectures.

Some options of ours have no counterpart elsewhere but can be written into the weights: a residual
scale, sine and cosine positions, no positions, missing biases. What is rewritten here computes the
same logits, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.configuration import BIASES, ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures import ARCHITECTURES, Architecture, refuse
from gpt.model import GPT
from gpt.model.embedding import sinusoids

State = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """Whose architectures a model is to be written in.

    known: by Hugging Face's name. strict: whether the one that a configuration names has to do.
    """

    whose: str
    known: Mapping[str, Architecture]
    strict: bool = False

    def nearest(self, config: ModelConfig) -> Architecture:
        """The one to name what cannot be expressed by."""
        if config.norm == "layernorm":
            return self.known["gpt2"]
        if config.qk_norm:
            return self.known["qwen3"]
        return self.known["llama" if config.window is None or "mistral" not in self.known
                          else "mistral"]


HUGGING_FACE = Target("Hugging Face", ARCHITECTURES, strict=True)
COMMON = ("gpt2", "llama", "mistral", "qwen3")  # what most tools read


@torch.no_grad()
def standard_form(model: GPT, dtype: torch.dtype = torch.float32, target: Target = HUGGING_FACE
                  ) -> GPT:
    """A copy of a model, in `dtype`, whose options are those of a standard architecture. Raises
    UserError as `standard` does."""
    _, config = standard(model.config, target)
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


def standard(config: ModelConfig, target: Target = HUGGING_FACE
             ) -> tuple[Architecture, ModelConfig]:
    """The architecture that a model is exported as, and its options there.

    The one that config.model_type names; else one that most tools read, if the model can be written
    so; else any. Raises UserError naming what the nearest one cannot express.
    """
    plain, rewritten = (ModelConfig(**fields) for fields in (_simple_fields(config),
                                                             _rewritten_fields(config)))
    own, known = config.model_type, target.known
    if target.strict and own is not None and own not in known:
        raise UserError(f"model.model_type={own} is none of {', '.join(known)}")
    named = [(known[own], each) for each in (plain, rewritten)] if own and own in known else []
    others = [(known[name], rewritten) for name in COMMON if name in known] + [
        (one, each) for name, one in known.items() if name not in COMMON
        for each in (plain, rewritten)]
    for architecture, found in named if named and target.strict else named + others:
        if not architecture.refusals(found):
            return architecture, found.model_copy(update={
                "model_type": next(name for name, one in known.items() if one is architecture)})
    nearest, found = named[0] if named else (target.nearest(config), rewritten)
    refuse(nearest.refusals(found), f"{target.whose}'s {nearest.model_type}")
    raise AssertionError("what refuses nothing was returned")


def _simple_fields(config: ModelConfig) -> dict[str, object]:
    """The same options, without windows that hide nothing and factors that no text is read by."""
    fields: dict[str, object] = config.model_dump()
    scaling = config.rope_scaling
    if scaling is not None and config.block_size > scaling.original_block_size and (
            scaling.kind == "longrope"):
        fields["rope_scaling"] = scaling.model_dump() | {"short_factor": scaling.long_factor}
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
        fields["bias"] = [*BIASES] if "lm_head" in config.biases else True
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
