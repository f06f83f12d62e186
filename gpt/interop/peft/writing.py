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

from gpt.configuration import AdapterConfig
from gpt.errors import UserError, WorkFailed
from gpt.files import write_json
from gpt.files.tensors import save_tensors
from gpt.interop import proof
from gpt.interop.new_folder import new_folder
from gpt.interop.peft.layout import CONFIG, PREFIX, WEIGHTS, Matrix, frozen_lengths, matrices_of
from gpt.interop.peft.reading import read_peft
from gpt.interop.reading import is_huggingface_folder, read_model
from gpt.interop.writing import write_tokenizer
from gpt.model import GPT, lora
from gpt.tokenizer import Tokenizer

ROUNDING = 1e-3  # of the largest logit: sums in another order, and standard_form's products


def export_peft(model: GPT, tokenizer: Tokenizer, out: Path, base_name: str) -> str:
    """Write a model's adapter to `out`, and prove it; returns one line saying how.

    base_name: where PEFT finds the exported base; of a folder that is here, the weights are
    compared. Raises UserError if there is no adapter, if the base is another one, if the name is
    taken or an option of the model cannot be expressed, and WorkFailed, with nothing left of the
    folder, if what was written is not the same adapter.
    """
    if model.adapter is None:
        raise UserError("this model has no adapter; export the model itself with --format hf")
    about_base = _compared_with_base(model, base_name)
    state = {name: tensor.cpu().float() for name, tensor in lora.adapter_state(model).items()}
    learned = [matrix for matrix in matrices_of(model) if matrix.learned(state)]
    tensors = {f"{PREFIX}{matrix.theirs}.{name}": tensor for matrix in learned
               for name, tensor in _their_update(matrix, model, state).items()}
    with new_folder(out) as folder:
        save_tensors(tensors, folder / WEIGHTS)
        write_json(folder / CONFIG, {"base_model_name_or_path": base_name,
                                     **_their_config(model.adapter, state, learned)})
        write_tokenizer(folder, tokenizer, model.config.block_size)
        return f"{_prove(folder, model)}; {about_base}"


@torch.no_grad()
def _compared_with_base(model: GPT, name: str) -> str:
    """What is known of the base that PEFT will find. Raises UserError if it is another model."""
    if not is_huggingface_folder(Path(name)):
        return f"the base {name} is not here, and was not compared"
    assert model.adapter is not None
    theirs, ours = read_model(Path(name)), _plain(model, lora.base_state(model))
    if theirs.vocab_size == ours.vocab_size:
        length = min(theirs.config.block_size, ours.config.block_size)
        tokens = _tokens(ours, length)
        expected = ours(tokens)
        difference = float((theirs(tokens) - expected).abs().max())
        if model.adapter.base == "int8":
            return (f"with the base in {name}, which is not rounded to int8 as in training, logits "
                    f"differ by up to {difference:.2g}")
        if difference <= ROUNDING * float(expected.abs().max()):
            return f"the base in {name} is the one of training"
    raise UserError(f"{name} is not the model that the adapters were trained on; export that one "
                    "and give it as --base")


def _tokens(model: GPT, length: int) -> Tensor:
    """Some to compare models with, (2, T)."""
    return torch.randint(model.vocab_size, (2, min(length, 256)),
                         generator=torch.Generator().manual_seed(0))


def _plain(model: GPT, state: dict[str, Tensor], adapter: AdapterConfig | None = None) -> GPT:
    """A model of the same architecture in float32 on the CPU, with these weights."""
    with torch.device("meta"):
        copy = GPT(model.config)
    if adapter is not None:
        lora.adapt(copy, adapter.model_copy(update={"base": "full"}))
    copy.load_state_dict({name: tensor.cpu().float() for name, tensor in state.items()},
                         assign=True)
    return copy.eval()


def _their_update(matrix: Matrix, model: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One for all parts: the A's one below the other, each B on its own rows and columns."""
    A = torch.cat([state[matrix.name(part, "A")] for part in matrix.learned(state)])
    B = [state.get(matrix.name(part, "B"), A.new_zeros(rows, 0))
         for part, rows in matrix.parts.items()]
    update = {"lora_A.weight": A,
              "lora_B.weight": matrix.their_rows(torch.block_diag(*B) * matrix.factor)}
    if any(matrix.name(part, "magnitude") in state for part in matrix.parts):
        lengths = frozen_lengths(model, matrix.ours)
        magnitudes = [state.get(matrix.name(part, "magnitude"), lengths[part])
                      for part in matrix.parts]
        update["lora_magnitude_vector"] = matrix.their_rows(torch.cat(magnitudes) * matrix.factor)
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
    assert model.adapter is not None
    try:
        read = read_peft(folder, model)
    except UserError as error:
        raise WorkFailed(f"the export is wrong and was deleted: {error}") from error
    tokens, base = _tokens(model, model.config.block_size), lora.base_state(model)
    written = (model.adapter, lora.adapter_state(model))
    expected, found = (proof.layer_states(_plain(model, base | tensors, config), tokens)
                       for config, tensors in (written, read))
    difference = proof.compare_states(expected, found, "this toolkit")
    return (f"read back by this toolkit: logits differ by at most {difference:.2g} on "
            f"{tokens.numel()} tokens")
