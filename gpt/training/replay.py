"""Taking a step again that was written down as an incident, and looking where a number that is not
finite arises first."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt.batches import MicroBatch
from gpt.errors import UserError
from gpt.files import read_json
from gpt.files.tensors import SavedTensors
from gpt.machine.device import Machine
from gpt.machine.seeds import mix_seeds
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.training.incidents import ABOUT, BATCH, FORMAT_VERSION, ROWS
from gpt.training.objective import Objective

SHOWN = 80  # characters of a text


@dataclass(frozen=True)
class Incident:
    """An incident as it lies on disk.

    about: incident.json. batch: (the rank that read it, a micro-batch) each. rows: rows.jsonl by
    (micro-batch, row).
    """

    path: Path
    about: dict[str, Any]
    batch: list[tuple[int, MicroBatch]]
    rows: dict[tuple[int, int], dict[str, Any]]

    @classmethod
    def read(cls, path: Path, kinds: Mapping[str, type[MicroBatch]]) -> Incident:
        """kinds: of micro-batches, by name. Raises UserError for a folder that is none, or is
        damaged."""
        if not (path / ABOUT).is_file():
            raise UserError(f"{path} is no incident: give a folder such as "
                            "runs/NAME/incidents/step-00000123")
        problems = [problem for problem in checkpoint.damage(path)
                    if not problem.endswith("is not in the manifest")]  # weights that were gone
        if problems:
            raise UserError(f"{path} is damaged: {'; '.join(problems)}")
        about = read_json(path / ABOUT)
        try:
            if about["format_version"] != FORMAT_VERSION:
                raise UserError(f"{path} has format {about['format_version']}, not "
                                f"{FORMAT_VERSION}")
            saved = SavedTensors(path / BATCH)
            batch = [(part["rank"], kinds[part["kind"]](tokens=part["tokens"], **{
                name.partition("/")[2]: tensor for name, tensor in saved.items()
                if name.startswith(f"{number}/")})) for number, part
                in enumerate(about["micro_batches"])]
            lines = map(json.loads, (path / ROWS).read_text(encoding="utf-8").splitlines())
            rows = {(line["micro_batch"], line["row"]): line for line in lines}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
        return cls(path, about, batch, rows)

    def said(self, part: int, row: int) -> str:
        """What a row is made of, for people."""
        line = self.rows.get((part, row), {})
        origins = "; ".join(", ".join(f"{name} {_range(value)}" for name, value in origin.items())
                            for origin in line.get("from", []))
        text = " ".join(str(line.get("text", "")).split())
        return f"row {row} ({origins}): {text[:SHOWN]}{'…' * (len(text) > SHOWN)}"


def _range(value: Any) -> str:
    return f"{value[0]:,} to {value[1]:,}" if isinstance(value, list) else str(value)


@dataclass
class First:
    """The first number that is not finite. rows: in which of a micro-batch."""

    where: str
    rows: list[int]
    said: str


def replay(incident: Incident, model: GPT, objective: Objective, machine: Machine,
           say: Callable[[str], None]) -> tuple[float, float]:
    """Take the step again, without an update; (the loss, the gradient's norm before clipping).

    say: told of what is found, part by part.
    """
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            say(f"weights: {name} {_counted(weight)} from before the step")
    counted = max(1, sum(objective.count(part) for _, part in incident.batch))
    total, last_rank = 0.0, -1
    model.train()
    for number, (rank, part) in enumerate(incident.batch):
        if rank != last_rank:  # each drew for all of its micro-batches
            torch.manual_seed(mix_seeds(machine.seed, incident.about["step"],
                                        *([rank] if rank else [])))
            last_rank = rank
        with _watched(model) as (forward, backward):
            with machine.autocast():
                loss = objective.summed_loss(model, part.on(machine)) / counted
            part_loss = loss.item()
            if not math.isfinite(part_loss) and not forward:
                forward.append(First("the output layer and the loss", [], f"give {part_loss}"))
            loss.backward()
        total += part_loss
        for when, found in (("forward", forward), ("backward", backward)):
            for first in found[:1]:
                say(f"micro-batch {number}, {when}: {first.where} {first.said}")
                for row in first.rows[:3]:
                    say(f"  {incident.said(number, row)}")
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for name, weight in model.named_parameters():
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            say(f"gradients: of {name}, the first in the model's order, "
                f"{_counted(weight.grad)}")
            break
    return total, float(nn.utils.get_total_norm(gradients))


@contextlib.contextmanager
def _watched(model: GPT) -> Iterator[tuple[list[First], list[First]]]:
    """While a model reads and learns: where in the forward pass a module gave something that is not
    finite, and where in the backward pass it was given such a gradient, in that order."""
    forward, backward = list[First](), list[First]()

    def look(found: list[First], where: str, tensor: Tensor) -> None:
        if not torch.isfinite(tensor).all():
            rows = (~torch.isfinite(tensor.detach().flatten(1)).all(dim=1)).nonzero()
            found.append(First(where, rows.flatten().tolist(), _counted(tensor)))

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if not forward:
                look(forward, f"the output of {name}", output)
            if output.requires_grad:
                output.register_hook(lambda gradient: None if backward else look(
                    backward, f"the gradient of the output of {name}", gradient))
        return seen

    handles = [module.register_forward_hook(hook(name))
               for name, module in model.named_modules() if name]
    try:
        yield forward, backward
    finally:
        for handle in handles:
            handle.remove()


def _counted(tensor: Tensor) -> str:
    """How many numbers are not finite, and the first of them."""
    bad = ~torch.isfinite(tensor.detach())
    return (f"has {int(bad.sum()):,} of {tensor.numel():,} numbers that are not finite (such as "
            f"{float(tensor.detach()[bad][0])})")
