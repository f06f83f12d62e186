"""A step that was not to be taken, written down so that it can be looked at and taken again.

`runs/NAME/incidents/step-00000123/` is a checkpoint from before the step, without the optimizer,
and holds besides incident.json (what happened, and with which settings), rows.jsonl (of each
sequence the documents, the positions and the text) and batch.safetensors (what the model read).
replay.py takes the step again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt.batches import MicroBatch, Origin
from gpt.configuration import RunSections
from gpt.files import write_atomically, write_json
from gpt.files.tensors import save_tensors
from gpt.runs import checkpoint
from gpt.runs.checkpoint import OPTIMIZER, Contents
from gpt.tokenizer import Tokenizer

FOLDER, ABOUT, ROWS, BATCH = "incidents", "incident.json", "rows.jsonl", "batch.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Incident:
    """What happened at a step.

    batch: this process's micro-batches, and origins what each of their sequences is made of.
    is_late: the weights have followed the gradient already, so that there is nothing to keep.
    """

    said: str
    loss: float
    grad_norm: float
    batch: list[MicroBatch]
    origins: list[list[list[Origin]]]
    is_late: bool

    def write(self, contents: Contents, config: RunSections) -> Path:
        """Write it into the run's folder, whole or not at all; all processes take part.

        contents: the run before the step.
        """
        weights = {} if self.is_late else {name: tensors for name, tensors
                                           in contents.tensors.items() if name != OPTIMIZER}
        machine = contents.layout.machine
        told = machine.ranks.all((self.batch, self.origins))
        about = {"format_version": FORMAT_VERSION, "what": self.said, "loss": str(self.loss),
                 "grad_norm": str(self.grad_norm), "step": contents.state.step,
                 "batch": contents.state.next_batch, "seed": machine.seed,
                 "device": machine.device.type,
                 "dtype": str(machine.dtype).removeprefix("torch."), "compiled": machine.compile,
                 "config": config.model_dump(mode="json", by_alias=True)}
        return checkpoint.write(
            contents.run / FOLDER, replace(contents, tensors=weights),
            number=contents.state.next_batch, may_be_infinite=True,
            besides=lambda folder: _write(folder, about, told, contents.tokenizer))


def _write(folder: Path, about: dict[str, Any], told: list[Any], tokenizer: Tokenizer) -> None:
    """What each rank has read, and what happened."""
    tensors, parts, lines = dict[str, Tensor](), list[dict[str, Any]](), list[str]()
    for rank, (batch, origins) in enumerate(told):
        for part, rows in zip(batch, origins or [[]] * len(batch), strict=True):
            number = len(parts)
            parts.append({"rank": rank, "kind": type(part).__name__, "tokens": part.tokens})
            tensors |= {f"{number}/{name}": value.contiguous() for name, value
                        in vars(part).items() if isinstance(value, Tensor)}
            for row, ids in enumerate(part.inputs.tolist()):
                # Of preferences, two rows are one sequence.
                made_of = rows[row // part.together] if rows else []
                lines.append(json.dumps({"micro_batch": number, "row": row, "from": made_of,
                                         "text": tokenizer.decode(ids)}, ensure_ascii=False))
    save_tensors(tensors, folder / BATCH)
    write_atomically(folder / ROWS, "".join(f"{line}\n" for line in lines))
    write_json(folder / ABOUT, {**about, "micro_batches": parts})


def count(run: Path) -> int:
    """How many there were in a run."""
    return len(checkpoint.steps_in(run / FOLDER))
