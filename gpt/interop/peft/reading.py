"""Adapters that PEFT wrote, for a model of ours.

GPT-2's c_attn is queries, keys and values in one: each of our three takes what of its update
reaches its rows.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt.configuration import AdapterConfig
from gpt.errors import UserError
from gpt.files import read_json
from gpt.interop.options import Options
from gpt.interop.peft.layout import CONFIG, PREFIX, WEIGHTS, Matrix, frozen_lengths, matrices_of
from gpt.model import GPT
from gpt.tokenizer.hub_folder import HubFolder

CONVERT = ("python -c \"import sys, torch; from safetensors.torch import save_file; "
           "save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])\" {pickled} {safe}")
# How A and B began says nothing about what they do, unless the base was changed along with them.
_HARMLESS_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Read here, or of no weight for what the tensors compute: they say themselves where they belong.
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora", "use_rslora"}
# A repetition of what is repeated already, or may be read in several ways, can take for ever.
_SLOW, _REPEATED, MOST_REPEATED = re.compile(r"\)[*+{]"), re.compile(r"[*+?{]"), 3
_MERGE = "merge it with PEFT (merge_and_unload) and use the merged model"


def read_peft(folder: Path, model: GPT) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The adapter of a folder, for a model: its configuration, and its weights by our names.

    Matrices may have ranks and scales of their own, and some layers none: A and B are filled up
    with zeros, which stay zeros in training, and B takes up what scales differ by.
    Raises UserError for what this toolkit would compute differently, and if the adapter does not
    fit the model.
    """
    settings, tensors, matrices = _Settings(folder), _read_tensors(folder), matrices_of(model)
    updates: dict[str, _Update] = {}
    for matrix in matrices:
        if any(name.startswith(f"{matrix.theirs}.lora_") for name in tensors):
            updates |= _our_updates(matrix, model, settings, tensors)
    if tensors:
        raise UserError(f"{folder / WEIGHTS}: {', '.join(sorted(tensors)[:3])} cannot be used: of "
                        f"this model, attention and feed-forward can be adapted; {_MERGE}")
    if not updates:
        raise UserError(f"{folder / WEIGHTS} holds no adapter; fetch it again")
    return _with_one_rank(updates, matrices, model, settings)


@dataclass(frozen=True)
class _Update:
    """What was read for one part of ours: A (R, I), B (O, R), and DoRA's magnitude (O,)."""

    A: Tensor
    B: Tensor
    magnitude: Tensor | None
    scale: float


def _our_updates(matrix: Matrix, model: GPT, settings: _Settings,
                 tensors: dict[str, Tensor]) -> dict[str, _Update]:
    """What one of their matrices learned, by our names; its tensors are taken out of `tensors`.

    Of several parts, each takes the columns of B that reach its rows, and those that are zero yet.
    """
    rank, scale = settings.rank_and_scale(matrix.theirs)
    rows = list(matrix.parts.values())
    A = _taken(tensors, f"{matrix.theirs}.lora_A.weight", (rank, matrix.inputs), settings)
    B = matrix.our_rows(_taken(tensors, f"{matrix.theirs}.lora_B.weight", (sum(rows), rank),
                               settings))
    magnitudes: list[Tensor | None] = [None] * len(rows)
    if settings.dora:
        name = f"{matrix.theirs}.lora_magnitude_vector"
        whole = _taken(tensors, name, (sum(rows),), settings) / matrix.factor
        magnitudes = list(matrix.our_rows(whole).split(rows))
    waiting, found = (A != 0).any(1) & (B == 0).all(0), {}
    for part, mine, magnitude in zip(matrix.parts, B.split(rows), magnitudes, strict=True):
        used = (mine != 0).any(0) | waiting | (len(rows) == 1)
        if used.any() or not (magnitude is None
                              or torch.equal(magnitude, frozen_lengths(model, matrix.ours)[part])):
            found[f"{matrix.ours}.lora.{part}"] = _Update(
                A[used], mine[:, used] / matrix.factor, magnitude, scale)
    return found


def _with_one_rank(updates: dict[str, _Update], matrices: list[Matrix], model: GPT,
                   settings: _Settings) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Updates of one rank and scale, for the same parts of all layers."""
    widest = max(updates.values(), key=lambda update: len(update.A))
    targets = list(dict.fromkeys(name.rpartition(".")[2] for name in updates))
    config = settings.adapter(max(1, len(widest.A)), widest.scale, targets)
    tensors: dict[str, Tensor] = {}
    for matrix in matrices:
        for part in [part for part in matrix.parts if part in targets]:
            name = f"{matrix.ours}.lora.{part}"
            update = updates.get(name) or _Update(
                torch.zeros(0, matrix.inputs), torch.zeros(matrix.parts[part], 0), None, 0.0)
            lacking = config.rank - len(update.A)
            tensors[f"{name}.A"] = F.pad(update.A, (0, 0, 0, lacking))
            tensors[f"{name}.B"] = F.pad(update.B * (update.scale / config.scale), (0, lacking))
            if settings.dora:
                tensors[f"{name}.magnitude"] = (frozen_lengths(model, matrix.ours)[part]
                                                if update.magnitude is None else update.magnitude)
    return config, tensors


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...],
           settings: _Settings) -> Tensor:
    if name not in tensors:
        raise UserError(f"{settings.folder / WEIGHTS}: {name} is missing; fetch the folder again")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise UserError(f"{settings.folder / WEIGHTS}: {name} has the shape {tuple(tensor.shape)}, "
                        f"the model and {CONFIG} ask for {shape}; they do not belong together")
    return tensor


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors in float32, without the prefix that PEFT puts before every name."""
    if (path := HubFolder(folder).file(WEIGHTS)) is None:
        advice = "".join(f"; convert the pickled {pickled.name} once: "
                         + CONVERT.format(pickled=pickled, safe=folder / WEIGHTS)
                         for pickled in sorted(folder.glob("*.bin"))[:1])
        raise UserError(f"{folder} holds no {WEIGHTS}, in which adapters are read{advice}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no sound safetensors file: {error}; fetch it again") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path}: {name} is stored as {tensor.dtype}; it must be a float")
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}


class _Settings:
    """What adapter_config.json says. Raises UserError for what would be computed differently."""

    def __init__(self, folder: Path):
        self.folder, path = folder, HubFolder(folder).file(CONFIG) or folder / CONFIG
        self._values = read_json(path)
        if not isinstance(self._values, dict):
            raise UserError(f"{path} is damaged: it is no object")
        options = self._options = Options(self._values, str(path))
        options.require("peft_type", "LORA", default=None)
        options.require("bias", "none", default="none")
        self._refuse_what_is_not_read()
        self.rank, self.alpha = options.count("r", 8), options.number("lora_alpha", 8)
        self.dropout = options.number("lora_dropout", 0.0)
        self.rslora = options.require("use_rslora", True, False, default=False)
        self.dora = options.require("use_dora", True, False, default=False)

    def _refuse_what_is_not_read(self) -> None:
        where, beginning = self._options.where, self._options.take("init_lora_weights", True)
        if beginning not in _HARMLESS_BEGINNINGS:
            raise UserError(f"{where}: init_lora_weights={reprlib.repr(beginning)} is not "
                            "supported: it may have changed the base; save the adapter with "
                            f"path_initial_model_for_weight_conversion, or {_MERGE}")
        for name, value in self._values.items():
            if name not in _UNDERSTOOD and value not in (None, False, [], {}, ""):
                raise UserError(f"{where}: {name}={reprlib.repr(value)} is not supported; {_MERGE}")

    def rank_and_scale(self, matrix: str) -> tuple[int, float]:
        """Of one of their matrices, by its full name."""
        rank: int = self._matching("rank_pattern", matrix, Options.count, self.rank)
        alpha: float = self._matching("alpha_pattern", matrix, Options.number, self.alpha)
        return rank, alpha / (rank**0.5 if self.rslora else rank)

    def _matching(self, option: str, matrix: str, read: Callable[[Options, str], Any],
                  default: Any) -> Any:
        """What the first pattern says that the end of a name matches, as PEFT looks for it."""
        section = self._options.section(option)
        for pattern in self._values.get(option) or ():
            if _SLOW.search(pattern) or len(_REPEATED.findall(pattern)) > MOST_REPEATED:
                raise UserError(f"{self._options.where}: {option} has {reprlib.repr(pattern)}, "
                                "which could take for ever to look for; write out the names")
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", matrix)
            except re.error as error:
                raise UserError(f"{self._options.where}: {option} has {reprlib.repr(pattern)}, "
                                f"which is no regular expression: {error}") from error
            if matches and section is not None:
                return read(section, pattern)
        return default

    def adapter(self, rank: int, scale: float, targets: list[str]) -> AdapterConfig:
        """In our terms; alpha gives the scale that was found, where the rank is another."""
        alpha = self.alpha if rank == self.rank else scale * (rank**0.5 if self.rslora else rank)
        try:
            return AdapterConfig(method="dora" if self.dora else "lora", rank=rank, alpha=alpha,
                                 dropout=self.dropout, rslora=self.rslora, targets=targets)
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(f"{self._options.where}: {problem['loc'][0]} (as this toolkit calls "
                            f"it): {problem['msg']}") from error
