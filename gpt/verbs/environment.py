"""python -m gpt env: versions, hardware, and what a model costs on it."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch

from gpt.configuration import TOKENS_PER_PARAMETER, PretrainConfig
from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.generation.native.library import library
from gpt.machine.device import DTYPES, Machine, choose_machine
from gpt.machine.hardware import (
    PACKAGES,
    computes_in_bfloat16,
    measure_matmul_flops,
    package_version,
)
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.optim import Rates
from gpt.runs.saved_model import find_model
from gpt.training.choices import choose_batch_size, choose_micro_batch_size
from gpt.training.plan import memory_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, if there is one to be told of."""
    parser.add_argument("model", metavar="MODEL", nargs="?",
                        help="a run, a checkpoint, a Hugging Face folder, GGUF, or a training "
                             "configuration (.yaml) that gives model.vocab_size")


def run(options: argparse.Namespace) -> None:
    """One fact per line."""
    machine = choose_machine()
    facts = about_here(machine) | about_hardware(machine)
    if options.model is not None:
        facts |= about_model(options.model, machine)
    for name, fact in facts.items():
        print(f"{name:14} {fact}")


def about_here(machine: Machine) -> dict[str, str]:
    """What is installed."""
    versions = {name: package_version(name) for name in PACKAGES}
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if not version)
    return {"python": f"{platform.python_version()} on {platform.platform()}",
            "packages": there} | ({"not installed": missing} if missing else {})


def about_hardware(machine: Machine) -> dict[str, str]:
    """What "auto" chooses, and how fast large matrix products are in each number format."""
    kinds = ["float32", *(["bfloat16"] if computes_in_bfloat16(machine.device.type) else [])]
    speeds = {kind: measure_matmul_flops(machine.device, DTYPES[kind]) for kind in kinds}
    return {"device": machine.describe(), "cores": str(os.cpu_count()),
            "memory": f"{total_memory(machine) / 2**30:,.1f} GiB",
            "products": ", ".join(f"{kind} {flops / 1e9:,.0f} GFLOP/s"
                                  for kind, flops in speeds.items()),
            "generation": new_tokens_by(machine)}


def new_tokens_by(machine: Machine) -> str:
    """What reads one token at a time."""
    if machine.device.type == "cuda":
        return "CUDA graphs"
    if machine.device.type == "cpu" and library() is not None:
        return "gpt/generation/native, compiled for this processor"
    return "torch"


def total_memory(machine: Machine) -> int:
    """Bytes of the device, or of this machine."""
    if machine.device.type == "cuda":
        return torch.cuda.get_device_properties(machine.device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


def about_model(name: str, machine: Machine) -> dict[str, str]:
    """Parameters, FLOPs per token, and memory by kind in training."""
    config = _configuration(Path(name)) if name.endswith((".yaml", ".yml")) else None
    shape = config.model if config is not None else find_model(name).config()
    if shape.vocab_size is None:
        raise UserError(f"{name} leaves model.vocab_size to its dataset; give a run instead")
    with torch.device("meta"):
        model = GPT(shape)
    settings = config or PretrainConfig(data={"dataset": "none"})
    sequences = choose_batch_size(settings.train, shape, flops_per_token(model),
                                  TOKENS_PER_PARAMETER * parameter_count(model), machine)
    train = settings.train.model_copy(update={"batch_size": sequences})
    size = choose_micro_batch_size(train, shape, machine)
    rates = Rates.of(settings.optim, shape, train.sequences_per_step * shape.block_size)
    return {"model": f"{parameter_count(model):,} parameters, {flops_per_token(model):,} FLOPs per "
                     "token",
            "training": f"micro-batches of {size} x {shape.block_size} tokens, "
                        + memory_line(model, rates, size * shape.block_size,
                                      train.recompute_activations, machine.device)}


def _configuration(path: Path) -> PretrainConfig:
    from gpt.configuration import validate
    document = load_file(path)
    return validate(PretrainConfig, document.values, {})
