"""How well a model predicts text: loss in nats per token, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.batches import IGNORE, MicroBatch
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


@torch.inference_mode()
def evaluate(model: GPT, batches: Iterable[MicroBatch], byte_lengths: Tensor,
             machine: Machine, on_batch: Callable[[], object] = lambda: None) -> Score:
    """Score every supervised target once. byte_lengths: (V,) bytes of text per token id.

    Raises Interrupted after a signal that the machine listens to.
    """
    was_training = model.training
    model.eval()
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        machine.stop.raise_if_asked()
        with machine.autocast():
            loss = summed_loss(model, batch.on(machine))
        nats += loss.item()
        supervised = batch.targets[batch.targets != IGNORE]
        tokens += supervised.numel()
        text_bytes += int(byte_lengths[supervised].sum())
        on_batch()
    model.train(was_training)
    if not tokens:
        raise ValueError("there is nothing to score: no target is supervised")
    return Score(nats / tokens, nats / math.log(2) / max(1, text_bytes), tokens)
