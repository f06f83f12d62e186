"""Checkpoints: saved whole or not at all, verified before use, free of pickles.

`checkpoints/step-00000500/` holds model.safetensors, config.json, tokenizer/, state.json,
optimizer.safetensors and, written last, manifest.json with the size and SHA-256 of each. The folder
is written under a temporary name, flushed to disk and renamed, so a name `step-…` stands for a
complete save. The newest is the one with the highest step whose files match its manifest.

Where adapters alone learn, a checkpoint has adapter.safetensors instead of the weights, and the
weights that they adapt lie once in the run's `base/`, a checkpoint without an optimizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gpt.configuration.adapter import AdapterConfig
from gpt.configuration.sections import ModelConfig
from gpt.errors import UserError
from gpt.files.atomic import as_json, flush_to_disk, read_json, sha256_of, write_json
from gpt.files.tensors import save_tensors
from gpt.model import GPT
from gpt.model.lora import adapter_state, load_adapter_state
from gpt.optim import Optimizer
from gpt.tokenizer import Tokenizer

FORMAT_VERSION = 1
WEIGHTS, ADAPTER = "model.safetensors", "adapter.safetensors"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class TrainState:
    """How far a run has come."""

    step: int = 0  # optimizer updates done
    tokens: int = 0  # training tokens read
    elapsed_seconds: float = 0.0  # time spent training, summed over restarts
    loss_scale: dict[str, Any] | None = None  # of float16's losses


def save(folder: Path, model: GPT, optimizer: Optimizer, tokenizer: Tokenizer,
         state: TrainState) -> Path:
    """Write folder/step-N, complete or not at all; returns its path."""
    target = folder / f"step-{state.step:08d}"
    about = {}
    if model.adapter is not None:
        about = {"adapter": model.adapter.model_dump(),
                 "base_sha256": weight_hash(base_folder(folder.parent))}
    with _whole_or_not_at_all(target) as temporary:
        _write_model(temporary, model, tokenizer, state, **about)
        save_tensors(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
    return target


def save_model(target: Path, model: GPT, tokenizer: Tokenizer, imported_from: str) -> None:
    """Write a checkpoint to sample and fine-tune from: weights and tokenizer, no optimizer."""
    with _whole_or_not_at_all(target) as temporary:
        _write_model(temporary, model, tokenizer, TrainState(), imported_from=imported_from)


def base_folder(run: Path) -> Path:
    """Where a run whose adapters alone learn keeps what they adapt."""
    return run / "base"


@contextlib.contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A folder to fill; sealed and renamed at the end, gone after an error."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _seal(temporary)
        if target.exists():  # a damaged one of the same step, or the same state once more
            shutil.rmtree(target)
        temporary.rename(target)
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(folder: Path, model: GPT, tokenizer: Tokenizer, state: TrainState,
                 **about: Any) -> None:
    if model.adapter is None:
        save_tensors(model.state_dict(), folder / WEIGHTS)
    else:
        save_tensors(adapter_state(model), folder / ADAPTER)
    write_json(folder / "config.json",
               {"format_version": FORMAT_VERSION, "model": model.config.model_dump(), **about})
    write_json(folder / "state.json", asdict(state))
    tokenizer.save(folder / "tokenizer")


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `blocks.0.attention.out_proj.weight/exp_avg`."""
    return {f"{name}/{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()}


def _seal(folder: Path) -> None:
    """Flush every file and record its size and hash; manifest.json comes last."""
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        flush_to_disk(path)
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    for path in (p for p in folder.rglob("*") if p.is_dir()):
        flush_to_disk(path)
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "files": entries})


def damage(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files; empty when it is sound."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        entries = manifest["files"]
        # A manifest cannot hold its own hash; but only these exact bytes say what it says.
        if (checkpoint / "manifest.json").read_bytes() != as_json(manifest).encode():
            return ["manifest.json is damaged"]
        if manifest["format_version"] != FORMAT_VERSION:
            return [f"manifest.json has format {manifest['format_version']}, not {FORMAT_VERSION}"]
        weights = ADAPTER if ADAPTER in entries else WEIGHTS
        wanted = {weights, "config.json", "state.json"} - set(entries)
        problems = [f"{name} is not in the manifest" for name in sorted(wanted)]
        for name, entry in entries.items():
            path = checkpoint / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                problems.append(f"{name!r} leads out of the folder")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
                problems.append(f"{name} is damaged")
        return problems
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"manifest.json is missing or damaged ({error})"]


def steps_in(folder: Path) -> dict[int, Path]:
    """Checkpoints in a folder by step, newest first."""
    found = {int(match[1]): path for path in (folder.iterdir() if folder.is_dir() else ())
             if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; None if there never was one.

    A damaged one is named and passed over. Raises UserError if there are some and none is sound.
    """
    checkpoints = steps_in(folder)
    for path in checkpoints.values():
        if not (problems := damage(path)):
            return path
        print(f"warning: {path} is passed over: {'; '.join(problems)}", file=sys.stderr)
    if checkpoints:
        raise UserError(f"none of the {len(checkpoints)} checkpoints in {folder} is sound; restore "
                        "one from a backup, or start a new run with another run.name")
    return None


def find(run: str) -> Path:
    """The checkpoint that RUN names: a run folder's newest sound one, or one checkpoint folder."""
    path = Path(run)
    if (path / "manifest.json").is_file() or (path / WEIGHTS).is_file():
        if problems := damage(path):
            raise UserError(f"the checkpoint {path} cannot be used: {'; '.join(problems)}; use "
                            "another one of the run")
        return path
    if not path.is_dir():
        raise UserError(f"there is no run {run}: give a run folder such as runs/quickstart, or one "
                        "of its checkpoints")
    if (checkpoint := newest_sound(path / "checkpoints")) is None:
        raise UserError(f"{run} has no checkpoints: it is no run, or nothing was saved in it yet")
    return checkpoint


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer that travels with the weights."""
    return Tokenizer.load(checkpoint / "tokenizer")


def load_model_config(checkpoint: Path) -> ModelConfig:
    """The architecture of a checkpoint."""
    try:
        return ModelConfig.model_validate(read_json(checkpoint / "config.json")["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{checkpoint / 'config.json'} describes no model: {error}") from error


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


def load_weights(checkpoint: Path, model: GPT, assign: bool = False) -> None:
    """Read a model's weights, or its adapters'. Raises UserError if tensors do not fit."""
    path = checkpoint / (WEIGHTS if model.adapter is None else ADAPTER)
    try:
        tensors = load_file(path)
        if model.adapter is not None:
            load_adapter_state(model, tensors)
        else:
            model.load_state_dict(tensors, assign=assign)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its config.json: {error}") from error


def load_training(checkpoint: Path, model: GPT, optimizer: Optimizer) -> TrainState:
    """Put weights and optimizer back where they were saved."""
    load_weights(checkpoint, model)
    path = checkpoint / "optimizer.safetensors"
    if not path.is_file():
        raise UserError(f"{checkpoint} has no optimizer state: it can be sampled from and "
                        "fine-tuned, but training cannot go on from it")
    parameters = dict(model.named_parameters())
    for name, tensor in load_file(path).items():
        parameter, key = name.rsplit("/", 1)
        value = tensor.to(parameters[parameter].device)
        optimizer.state[parameters[parameter]][key] = value
    if lacking := optimizer.lacking_state():
        raise UserError(f"{checkpoint} was trained with another optimizer: it has no "
                        f"{' and '.join(sorted(lacking))}; set optim.name as it was there")
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> TrainState:
    """How far the run had come when this was saved."""
    try:
        return TrainState(**read_json(checkpoint / "state.json"))
    except TypeError as error:
        raise UserError(f"{checkpoint / 'state.json'} is damaged: {error}") from error


@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest validation loss so far, as best.json names it."""

    step: int
    val_loss: float


def read_best(folder: Path, up_to_step: int) -> Best | None:
    """The best checkpoint known when the run had come to a step; None if there was none."""
    try:
        best = Best(**json.loads((folder / "best.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return best if best.step <= up_to_step else None


def write_best(folder: Path, best: Best) -> None:
    """Name the best checkpoint."""
    write_json(folder / "best.json", asdict(best))


def prune(folder: Path, keep: int, step: int, best: Best | None) -> None:
    """Delete all but the newest `keep` checkpoints up to a step, and the best.

    Those beyond the step were found damaged when the run resumed. They are not counted, or they
    would take the place of sound ones.
    """
    past = {at: path for at, path in steps_in(folder).items() if at <= step}
    for at, path in list(past.items())[keep:]:
        if best is None or at != best.step:
            shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were killed left behind."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def weight_hash(checkpoint: Path) -> str:
    """SHA-256 of the weights, as the manifest has it: says which model was used."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    if ADAPTER not in files:
        return str(files[WEIGHTS]["sha256"])
    base = read_json(checkpoint / "config.json")["base_sha256"]
    return hashlib.sha256(f"{base} {files[ADAPTER]['sha256']}".encode()).hexdigest()
