"""How well a model predicts text: loss in nats per token, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.batches import IGNORE, MicroBatch, SizedBatches
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.training.objective import summed_loss


class Measured(NamedTuple):
    """What an evaluation finds besides the loss: figures by name, and some (prompt, text)."""

    figures: dict[str, float]
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Score:
    """The result of an evaluation."""

    loss: float  # nats per supervised token
    bits_per_byte: float  # comparable across tokenizers, and with what compressors reach
    tokens: int


def in_format(dtype: str) -> str:
    """What is said beside figures that another processor may not reproduce."""
    return "" if dtype == "float32" else f" (in {dtype})"


def evaluate(model: GPT, batches: SizedBatches, byte_lengths: Tensor,
             machine: Machine, on_batch: Callable[[int], object] = lambda batches: None) -> Score:
    """Score every supervised target once. byte_lengths: (V,) bytes of text per token id.

    on_batch: told how many batches have been scored since it was last told. Raises Interrupted
    after a signal that the machine listens to.
    """
    was_training = model.training
    model.eval()
    shares = machine.summed.together(
        lambda: _share(model, batches, byte_lengths, machine, on_batch))
    model.train(was_training)
    nats, tokens, text_bytes = (sum(each) for each in zip(*shares, strict=True))
    if not tokens:
        raise ValueError("there is nothing to score: no target is supervised")
    return Score(nats / tokens, nats / math.log(2) / max(1, text_bytes), int(tokens))


@torch.inference_mode()
def _share(model: GPT, batches: SizedBatches, byte_lengths: Tensor, machine: Machine,
           on_batch: Callable[[int], object]) -> tuple[float, int, int]:
    """(nats, tokens, bytes of text) of the batches that this process scores."""
    nats, tokens, text_bytes = 0.0, 0, 0
    for number, batch in dealt(batches, machine, on_batch):
        part = batch.on(machine)
        with machine.autocast():
            loss = summed_loss(model, part)
        if number is not None:
            nats += loss.item()
            supervised = part.targets[part.targets != IGNORE].cpu()
            tokens += supervised.numel()
            text_bytes += int(byte_lengths[supervised].sum())
    return nats, tokens, text_bytes


def dealt(batches: SizedBatches, machine: Machine,
          on_batch: Callable[[int], object] = lambda batches: None
          ) -> Iterator[tuple[int | None, MicroBatch]]:
    """The batches that this process scores, with their numbers.

    All processes score as many, since they may need each other for it; what does not count is one
    of theirs once more, without a number.
    """
    ranks, last = machine.data.size, len(batches) - 1
    for first in range(0, len(batches), ranks):
        machine.stop.raise_if_asked()
        number = first + machine.data.rank
        yield (number if number <= last else None), batches[min(number, last)]
        on_batch(min(ranks, len(batches) - first))
