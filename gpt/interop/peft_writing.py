"""Adapters of ours as PEFT's folders: adapter_config.json and adapter_model.safetensors.

GPT-2's c_attn is queries, keys and values in one: our updates of the three become one with a
block-diagonal B.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt import lora
from gpt.adapter_config import AdapterConfig
from gpt.errors import UserError, WorkFailed
from gpt.files import write_json
from gpt.interop import proof
from gpt.interop.new_folder import new_folder
from gpt.interop.peft_layout import CONFIG, PREFIX, WEIGHTS, Matrix, frozen_lengths, matrices_of
from gpt.interop.peft_reading import read_peft
from gpt.model import GPT
from gpt.tensor_file import save_tensors


def export_peft(model: GPT, out: Path, base_name: str) -> str:
    """Write a model's adapter to `out`, and prove it; returns one line saying how.

    base_name: where PEFT finds the exported base. Raises UserError if there is no adapter, if the
    name is taken or an option of the model cannot be expressed, and WorkFailed, with nothing left
    of the folder, if what was written is not the same adapter.
    """
    if model.adapter is None:
        raise UserError("this model has no adapter; export the model itself with --format hf")
    state = {name: tensor.cpu().float() for name, tensor in lora.adapter_state(model).items()}
    learned = [matrix for matrix in matrices_of(model) if matrix.learned(state)]
    tensors = {f"{PREFIX}{matrix.theirs}.{name}": tensor for matrix in learned
               for name, tensor in _their_update(matrix, model, state).items()}
    with new_folder(out) as folder:
        save_tensors(tensors, folder / WEIGHTS)
        write_json(folder / CONFIG, {"base_model_name_or_path": base_name,
                                     **_their_config(model.adapter, state, learned)})
        return _prove(folder, model)


def _their_update(matrix: Matrix, model: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One for all parts: the A's one below the other, each B on its own rows and columns."""
    A = torch.cat([state[matrix.name(part, "A")] for part in matrix.learned(state)])
    B = [state.get(matrix.name(part, "B"), A.new_zeros(rows, 0))
         for part, rows in matrix.parts.items()]
    update = {"lora_A.weight": A, "lora_B.weight": torch.block_diag(*B) * matrix.factor}
    if any(matrix.name(part, "magnitude") in state for part in matrix.parts):
        lengths = frozen_lengths(model, matrix.ours)
        magnitudes = [state.get(matrix.name(part, "magnitude"), lengths[part])
                      for part in matrix.parts]
        update["lora_magnitude_vector"] = torch.cat(magnitudes) * matrix.factor
    return update


def _their_config(config: AdapterConfig, state: dict[str, Tensor],
                  learned: list[Matrix]) -> dict[str, Any]:
    """adapter_config.json. k updates in one have k times the rank, and the scale that each had."""
    joined = {matrix.short_name: k for matrix in learned
              if (k := len(matrix.learned(state))) > 1}
    alpha = int(config.alpha) if config.alpha.is_integer() else config.alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "r": config.rank, "lora_alpha": alpha, "lora_dropout": config.dropout,
        "use_rslora": config.rslora, "use_dora": config.method == "dora", "bias": "none",
        "target_modules": sorted({matrix.short_name for matrix in learned}),
        "rank_pattern": {name: k * config.rank for name, k in joined.items()},
        "alpha_pattern": {name: alpha * (math.sqrt(k) if config.rslora else k)
                          for name, k in joined.items()},
        "fan_in_fan_out": any(matrix.transposed for matrix in learned), "init_lora_weights": True,
        "modules_to_save": None}


def _prove(folder: Path, model: GPT) -> str:
    """Read a folder back, and compare what leaves each layer."""
    assert model.adapter is not None and model.config.vocab_size is not None
    try:
        read = read_peft(folder, model)
    except UserError as error:
        raise WorkFailed(f"the export is wrong and was deleted: {error}") from error
    tokens = torch.randint(model.config.vocab_size, (2, min(model.config.block_size, 256)),
                           generator=torch.Generator().manual_seed(0))
    written = (model.adapter, lora.adapter_state(model))
    expected, found = (proof.layer_states(_rebuilt(model, *one), tokens) for one in (written, read))
    difference = proof.compare_states(expected, found, "this toolkit")
    return (f"read back by this toolkit: logits differ by at most {difference:.2g} on "
            f"{tokens.numel()} tokens")


def _rebuilt(model: GPT, config: AdapterConfig, tensors: dict[str, Tensor]) -> GPT:
    """A model's base in float32 on the CPU, with an adapter."""
    with torch.device("meta"):
        copy = GPT(model.config)
    lora.adapt(copy, config.model_copy(update={"base": "full"}))
    copy.load_state_dict({name: tensor.cpu().float() for name, tensor in
                          (lora.base_state(model) | tensors).items()}, assign=True)
    return copy.eval()
