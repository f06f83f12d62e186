"""Low-rank adapters: a model whose matrices are frozen learns small changes of them.

LoRA adds scale · B A to a frozen matrix W and learns A and B; DoRA also learns how long each row of
the sum is. A matrix of ours may hold several that have names elsewhere, as qkv_proj holds q_proj,
k_proj and v_proj. Each such part learns by itself: blocks.0.attention.qkv_proj.lora.q_proj.A.

Source: Hu et al. 2021 (arXiv:2106.09685); DoRA: Liu et al. 2024 (arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from gpt.configuration import GATED, AdapterConfig, ModelConfig
from gpt.errors import UserError
from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear


def adaptable_matrices(config: ModelConfig) -> dict[str, dict[str, int]]:
    """What can be adapted in every block: {matrix: {part: its rows}}."""
    q_width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    gate = {"gate_proj": config.n_inner} if config.mlp in GATED else {}
    return {"attention.qkv_proj": {"q_proj": q_width, "k_proj": kv_width, "v_proj": kv_width},
            "attention.out_proj": {"out_proj": config.n_embd},
            "feedforward.up_proj": {**gate, "up_proj": config.n_inner},
            "feedforward.down_proj": {"down_proj": config.n_embd}}


def chosen_parts(targets: list[str], config: ModelConfig) -> set[str]:
    """The parts that names and groups stand for. Raises UserError for a name that is not there."""
    parts, groups = {}, {"attention": set[str](), "feedforward": set[str](), "all": set[str]()}
    for matrix, rows in adaptable_matrices(config).items():
        parts.update({part: {part} for part in rows})
        groups[matrix.split(".")[0]] |= rows.keys()
        groups["all"] |= rows.keys()
    known = parts | groups
    if unknown := [target for target in targets if target not in known]:
        raise UserError(f"lora.targets: this model has no {unknown[0]!r}; choose from "
                        f"{', '.join(known)}")
    return set().union(*(known[target] for target in targets))


def adapt(model: GPT, config: AdapterConfig) -> None:
    """Freeze a model and let the chosen parts of its matrices learn; nothing changes yet.

    A is drawn from torch's global generator. Raises UserError for targets that are not there.
    """
    chosen = chosen_parts(config.targets, model.config)
    assert not adapted_layers(model), "merge the first adapter before adding a second"
    model.requires_grad_(False)
    for block in model.blocks:
        for matrix, parts in adaptable_matrices(model.config).items():
            if chosen & parts.keys():
                plain = cast(nn.Linear, block.get_submodule(matrix))
                block.set_submodule(matrix, AdaptedLinear(plain, parts, config))
    if config.base == "int8":
        quantize_base(model)
    for layer in adapted_layers(model).values():
        layer.add_updates(chosen)
    model.adapter = config


def quantize_base(model: GPT) -> None:
    """Keep frozen matrices as int8; the same weights always become the same bits."""
    for layer in adapted_layers(model).values():
        layer.quantize()


def merge(model: GPT) -> None:
    """Write what was learned into the matrices; the model is a plain one again, and trainable."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.merged(model.output_weight.dtype))
    model.adapter = None
    model.requires_grad_(True)


def adapted_layers(model: GPT) -> dict[str, AdaptedLinear]:
    """By name."""
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, AdaptedLinear)}


def is_adapter_weight(name: str) -> bool:
    """Whether a weight is an adapter's, by its name."""
    return ".lora." in name


def adapter_state(model: GPT) -> dict[str, Tensor]:
    """What the adapter has learned."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter_weight(name)}


def base_state(model: GPT) -> dict[str, Tensor]:
    """The weights under the adapter, as a plain model has them."""
    state = {name: tensor for name, tensor in model.state_dict().items()
             if not is_adapter_weight(name)}
    for name, layer in adapted_layers(model).items():
        state.pop(f"{name}.weight_scale", None)
        state[f"{name}.weight"] = layer.float_weight().detach()
    return state


@torch.no_grad()
def load_adapter_state(model: GPT, tensors: Mapping[str, Tensor],
                       put: Callable[[str, Tensor, Tensor], object]
                       = lambda name, weight, saved: weight.copy_(saved)) -> None:
    """Put back what an adapter had learned.

    put: takes a weight's name, itself, and what it is to hold. Raises UserError unless names and
    shapes are those of the model's adapter.
    """
    wanted = adapter_state(model)
    if found := misfits(wanted, tensors):
        raise UserError(f"the adapter's weights do not fit: {found}; it was made for another "
                        "model, or with other lora.targets, lora.rank or finetune.method")
    for name, tensor in tensors.items():
        put(name, wanted[name], tensor)


def misfits(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Which tensors are missing, too many, or of another shape; empty where all fit."""
    problems = {
        "missing": wanted.keys() - tensors.keys(),
        "unexpected": tensors.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & tensors.keys()
                             if wanted[name].shape != tensors[name].shape}}
    return ", ".join(f"{len(names)} {what} ({', '.join(sorted(names)[:3])})"
                     for what, names in problems.items() if names)
