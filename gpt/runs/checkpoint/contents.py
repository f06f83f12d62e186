"""What one checkpoint is to hold: as it lies on the devices, or a copy that waits to be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt.model import GPT
from gpt.model.lora import adapter_state
from gpt.optim import Optimizer
from gpt.parallel import Layout, alone
from gpt.runs.checkpoint.layout import FORMAT_VERSION, OPTIMIZER, TrainState, base_folder
from gpt.runs.manifest import ADAPTER, WEIGHTS, weight_hash
from gpt.tokenizer import Tokenizer

# Tensors of the copy before, whose memory the next one takes: {(file, name): copy}.
Room = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Contents:
    """A run at a step, ready to be saved.

    run: its folder. config: what config.json says. tensors: by file and name. layout: how they lie
    on devices.
    """

    run: Path
    config: dict[str, Any]
    state: TrainState
    tokenizer: Tokenizer
    tensors: dict[str, dict[str, Tensor]]
    layout: Layout

    @classmethod
    def of(cls, run: Path, model: GPT, optimizer: Optimizer, tokenizer: Tokenizer,
           state: TrainState, layout: Layout | None = None) -> Contents:
        """All that continues a run from here. layout: None: all lies on one device."""
        layout, about = layout or alone(), dict[str, Any]()
        if model.adapter is not None and layout.machine.ranks.is_first:
            about = {"adapter": model.adapter.model_dump(),
                     "base_sha256": weight_hash(base_folder(run))}
        learned = model.state_dict() if model.adapter is None else adapter_state(model)
        files = {WEIGHTS if model.adapter is None else ADAPTER: learned,
                 OPTIMIZER: _optimizer_tensors(model, optimizer)}
        # In one order, whatever the layout and however often the run was continued.
        tensors = {file: dict(sorted(layout.everywhere(each).items()))
                   for file, each in files.items()}
        return cls(run, described(model, **about), state, tokenizer, tensors, layout)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Tensor]]:
        for file, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                yield (file, name), tensor

    @property
    def tensor_bytes(self) -> int:
        """What a copy takes."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self)

    def make_room(self, room: Room) -> None:
        """Take the memory that a copy will need, all of it, so that the first one is quick, too."""
        for key, tensor in self:
            if key not in room:
                room[key] = _empty(tensor).zero_()

    def copied(self, room: Room) -> Contents:
        """The same as rank 0 alone could write it, whatever becomes of the model meanwhile.

        All ranks take part, and rank 0 alone has memory for it: that of `room`, again and again.
        """
        machine, kept = self.layout.machine, dict[str, dict[str, Tensor]]()
        for (file, name), tensor in self:
            whole = self.layout.whole(name, tensor).detach()
            if machine.ranks.is_first:
                kept.setdefault(file, {})[name] = _copy(whole, room, (file, name))
        machine.wait()
        return replace(self, tensors=kept, layout=alone())


def described(model: GPT, **about: Any) -> dict[str, Any]:
    """What config.json says of a model."""
    return {"format_version": FORMAT_VERSION, "model": model.config.model_dump(), **about}


def _copy(tensor: Tensor, room: Room, key: tuple[str, str]) -> Tensor:
    copy = room.get(key)
    if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
        copy = room[key] = _empty(tensor)
    return copy.copy_(tensor, non_blocking=True)


def _empty(tensor: Tensor) -> Tensor:
    """Memory for a copy: of a GPU's tensor such that it copies at full speed while it computes."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `blocks.0.attention.out_proj.weight/exp_avg`."""
    return {f"{name}/{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()}
