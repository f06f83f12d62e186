"""Saving a checkpoint whole or not at all, and deleting old ones.

Of a run of several processes all take part: weights that are spread are brought together one after
the other, and written by the process whose file they belong to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.configuration import CheckpointConfig
from gpt.errors import TrainingFailed, UserError
from gpt.files import flush_to_disk, make_folder, sha256_of, write_json
from gpt.files.tensors import TensorFile, index_of, save_tensors
from gpt.model import GPT
from gpt.optim import Optimizer
from gpt.parallel import Layout
from gpt.runs.checkpoint.contents import Contents, described
from gpt.runs.checkpoint.layout import FORMAT_VERSION, OPTIMIZER, TrainState
from gpt.runs.manifest import WEIGHTS, steps_in
from gpt.tokenizer import Tokenizer

LARGE = CheckpointConfig().shard_size


def save(folder: Path, model: GPT, optimizer: Optimizer, tokenizer: Tokenizer,
         state: TrainState, layout: Layout | None = None, shard_size: int = LARGE) -> Path:
    """Write folder/step-N, complete or not at all; returns its path.

    layout: how the model lies on devices; None: on one. shard_size: bytes, from which on tensors
    stand in several files with an index.
    """
    return write(folder, Contents.of(folder.parent, model, optimizer, tokenizer, state, layout),
                 shard_size)


def write(folder: Path, contents: Contents, shard_size: int = LARGE, number: int | None = None,
          besides: Callable[[Path], None] = lambda folder: None, may_be_infinite: bool = False
          ) -> Path:
    """The same for what was put together already, on whichever thread.

    number: in the folder's name, if it is not the step. besides: writes what else it is to hold.
    Raises TrainingFailed for weights that are not finite, unless they may be.
    """
    layout = contents.layout
    target = folder / f"step-{contents.state.step if number is None else number:08d}"
    ranks = layout.machine.ranks
    with ranks.first_has(_whole_or_not_at_all(target)) as temporary:
        if ranks.is_first:
            _write_about(temporary, contents.config, contents.tokenizer, contents.state)
            besides(temporary)
        for name, tensors in contents.tensors.items():
            check = name != OPTIMIZER and not may_be_infinite
            _write_tensors(temporary / name, tensors, layout, shard_size, check)
    return target


def save_model(target: Path, model: GPT, tokenizer: Tokenizer, imported_from: str) -> None:
    """Write a checkpoint to sample and fine-tune from: weights and tokenizer, no optimizer."""
    with _whole_or_not_at_all(target) as temporary:
        _write_about(temporary, described(model, imported_from=imported_from), tokenizer,
                     TrainState())
        save_tensors(dict(sorted(model.state_dict().items())), temporary / WEIGHTS)


@contextlib.contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A folder to fill; sealed and renamed at the end, gone after an error."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    make_folder(target.parent)
    temporary.mkdir()
    try:
        yield temporary
        _seal(temporary)
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, target: Path) -> None:
    """Give a folder its name; what had it before, which is damaged or the same, goes after that."""
    old = new.with_name(f"{new.name}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    flush_to_disk(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_about(folder: Path, config: dict[str, Any], tokenizer: Tokenizer, state: TrainState
                 ) -> None:
    write_json(folder / "config.json", config)
    write_json(folder / "state.json", asdict(state))
    tokenizer.save(folder / "tokenizer")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], layout: Layout, shard_size: int,
                   are_finite: bool) -> None:
    """Write tensors into one file or several. Files are written side by side, one tensor of each
    in turn, so that no process waits long for another's disk. are_finite: must be."""
    ranks, files = layout.machine.ranks, _dealt_to_files(tensors, shard_size)
    names = [path.name if len(files) == 1 else
             f"{path.stem}-{number:05d}-of-{len(files):05d}{path.suffix}"
             for number in range(1, len(files) + 1)]
    with contextlib.ExitStack() as stack:
        writers: dict[int, TensorFile] = {}
        for i in range(ranks.rank, len(files), ranks.size):
            if not path.parent.is_dir():
                raise UserError(f"{path.parent} is not there for rank {ranks.rank}: each process "
                                "writes its part of a large model, so run.out_dir has to be on a "
                                "file system that all hosts share; or raise checkpoint.shard_size")
            writers[i] = stack.enter_context(
                TensorFile(path.with_name(names[i]), {name: tensors[name] for name in files[i]}))
        for at in range(max(map(len, files))):
            for i, file in enumerate(files):
                if at < len(file):
                    whole = layout.whole(file[at], tensors[file[at]])
                    if i in writers:
                        if are_finite:
                            _refuse_non_finite(file[at], whole)
                        writers[i].write(file[at], whole)
    for i in writers:
        flush_to_disk(path.with_name(names[i]))
    if ranks.is_first and len(files) > 1:
        places = {name: names[i] for i, file in enumerate(files) for name in file}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        write_json(index_of(path), {"metadata": {"total_size": size}, "weight_map": places})


def _refuse_non_finite(name: str, tensor: Tensor) -> None:
    """Raise TrainingFailed rather than save weights that no run can go on from: they would take the
    place of sound ones."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all():
        raise TrainingFailed(f"{name} holds numbers that are not finite: it is not saved, and what "
                             "was saved before is kept; go on from there at lower learning rates")


def _dealt_to_files(tensors: Mapping[str, Tensor], shard_size: int) -> list[list[str]]:
    """Names, in order, for each file: as many as fit into so many bytes, one at least."""
    files: list[list[str]] = [[]]
    room = shard_size
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if files[-1] and size > room:
            files.append([])
            room = shard_size
        files[-1].append(name)
        room -= size
    return files


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


def prune(folder: Path, keep: int, step: int, kept: Collection[int | None],
          every_steps: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints up to a step, those of the steps in `kept`, and
    those of every so many steps.

    Those beyond the step were found damaged when the run resumed. They are not counted, or they
    would take the place of sound ones.
    """
    past = {at: path for at, path in steps_in(folder).items() if at <= step}
    for at, path in list(past.items())[keep:]:
        if at not in kept and (every_steps is None or at % every_steps):
            _remove(path)


def _remove(folder: Path) -> None:
    """Delete a folder. An error names it, and not just a file in it."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        error.filename = str(folder)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were killed left behind."""
    for path in folder.glob("*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
