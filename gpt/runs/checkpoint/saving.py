"""Saving a checkpoint whole or not at all, and deleting old ones."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpt.files import flush_to_disk, sha256_of, write_json
from gpt.files.tensors import save_tensors
from gpt.model import GPT
from gpt.model.lora import adapter_state
from gpt.optim import Optimizer
from gpt.runs.checkpoint.layout import (
    ADAPTER,
    FORMAT_VERSION,
    WEIGHTS,
    TrainState,
    base_folder,
    steps_in,
    weight_hash,
)
from gpt.tokenizer import Tokenizer


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


def prune(folder: Path, keep: int, step: int, kept: Collection[int | None]) -> None:
    """Delete all but the newest `keep` checkpoints up to a step, and those of the steps in `kept`.

    Those beyond the step were found damaged when the run resumed. They are not counted, or they
    would take the place of sound ones.
    """
    past = {at: path for at, path in steps_in(folder).items() if at <= step}
    for at, path in list(past.items())[keep:]:
        if at not in kept:
            shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were killed left behind."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
