"""Loading what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from gpt.configuration import AdapterConfig, ModelConfig
from gpt.errors import UserError
from gpt.files import read_json
from gpt.files.tensors import SavedTensors
from gpt.model import GPT
from gpt.model.lora import load_adapter_state, misfits
from gpt.optim import Optimizer
from gpt.parallel import Layout, alone
from gpt.runs.checkpoint.finding import damage
from gpt.runs.checkpoint.layout import OPTIMIZER, TrainState, base_folder, read_state
from gpt.runs.manifest import ADAPTER, WEIGHTS, weight_hash
from gpt.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer that travels with the weights."""
    return Tokenizer.load(checkpoint / "tokenizer")


def load_model_config(checkpoint: Path) -> ModelConfig:
    """The architecture of a checkpoint."""
    path = checkpoint / "config.json"
    try:
        config = ModelConfig.model_validate(read_json(path)["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{path} describes no model: {error}") from error
    if config.vocab_size is None:
        raise UserError(f"{path} describes no model: it has no vocab_size")
    return config


def load_model(checkpoint: Path) -> GPT:
    """Rebuild the model on the CPU, without drawing random weights first."""
    with torch.device("meta"):
        model = GPT(load_model_config(checkpoint))
    load_weights(checkpoint, model, assign=True)
    return model.eval()


def load_adapter(checkpoint: Path) -> tuple[AdapterConfig, Path] | None:
    """What a checkpoint's adapters are, and the checkpoint that they adapt; None if it has none.

    Raises UserError if that one is missing, damaged or another than it was.
    """
    config = read_json(checkpoint / "config.json")
    if not isinstance(config, dict) or "adapter" not in config:
        return None
    base = base_folder(checkpoint.absolute().parent.parent)
    if problems := damage(base):
        raise UserError(f"{checkpoint} holds adapters, and the model that they adapt cannot be "
                        f"used: {base}: {'; '.join(problems)}; copy the whole run's folder")
    if weight_hash(base) != config.get("base_sha256"):
        raise UserError(f"{base} is not the model that the adapters in {checkpoint} were trained "
                        "on; copy the whole run's folder")
    try:
        return AdapterConfig.model_validate(config["adapter"]), base
    except ValidationError as error:
        raise UserError(f"{checkpoint / 'config.json'} describes no adapter: {error}") from error


def load_weights(checkpoint: Path, model: GPT, assign: bool = False,
                 layout: Layout | None = None) -> None:
    """Read a model's weights, or its adapters'. Raises UserError if tensors do not fit.

    assign: the model takes the tensors that were read, rather than copies. layout: how the model
    lies on devices; None: on one.
    """
    path = checkpoint / (WEIGHTS if model.adapter is None else ADAPTER)
    try:
        tensors = SavedTensors(path)
        if assign:
            model.load_state_dict(dict(tensors), assign=True)
            return
        if model.adapter is not None:
            load_adapter_state(model, tensors, (layout or alone()).fill)
            return
        wanted = model.state_dict()
        if found := misfits(wanted, tensors):
            raise UserError(f"{path} does not fit its config.json: {found}")
        for name, tensor in tensors.items():
            (layout or alone()).fill(name, wanted[name], tensor)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its config.json: {error}") from error


def load_training(checkpoint: Path, model: GPT, optimizer: Optimizer,
                  layout: Layout | None = None) -> TrainState:
    """Put weights and optimizer back where they were saved, whatever the layout was then.

    layout: how the model lies on devices; None: on one.
    """
    layout = layout or alone()
    load_weights(checkpoint, model, layout=layout)
    path = checkpoint / OPTIMIZER
    try:
        tensors = SavedTensors(path)
    except OSError as error:
        raise UserError(f"{checkpoint} has no optimizer state: it can be sampled from and "
                        "fine-tuned, but training cannot go on from it") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}; use another checkpoint of the run") from error
    parameters = dict(model.named_parameters())
    try:
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition("/")
            weight = parameters[parameter]
            if tensor.dim() and tensor.shape != weight.shape:
                raise UserError(f"{path} does not fit its config.json: {name} has the shape "
                                f"{tuple(tensor.shape)}, and the weight {tuple(weight.shape)}")
            layout.fill_state(parameter, weight, optimizer.state[weight], key, tensor)
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} does not fit its config.json: {name}: {error}") from error
    if lacking := optimizer.lacking_state():
        raise UserError(f"{checkpoint} was trained with another optimizer: it has no "
                        f"{' and '.join(sorted(lacking))}; set optim.name as it was there")
    return read_state(checkpoint)
