"""How well a model predicts text: loss in nats per token, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpt.batches import IGNORE, MicroBatch
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.training.cross_entropy import summed_cross_entropy, token_cross_entropy


class Objective(Protocol):
    """What training makes small: a loss, summed over what a batch holds."""

    def count(self, batch: MicroBatch) -> int:
        """What the sum over a global batch is divided by."""
        ...

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """Of a batch on the model's device; ()."""
        ...

    def take_figures(self) -> dict[str, Tensor]:
        """Other sums, by name, over all batches since the last call; () each."""
        ...


class NextToken:
    """The negative log-likelihood of supervised tokens: pretraining and most fine-tuning."""

    def count(self, batch: MicroBatch) -> int:
        """Supervised tokens."""
        return batch.supervised_tokens

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """In nats; ()."""
        return summed_loss(model, batch)

    def take_figures(self) -> dict[str, Tensor]:
        """None."""
        return {}


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


def summed_loss(model: GPT, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood summed over a batch's supervised targets, in nats; ()."""
    x = model.hidden(batch.inputs, None, batch.segments, batch.prompts).flatten(0, 1)
    return summed_cross_entropy(x, model.output_weight, batch.targets.flatten(),
                                model.config.logit_softcap)


def token_losses(model: GPT, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where unsupervised; (B, T)."""
    x = model.hidden(batch.inputs, None, batch.segments, batch.prompts).flatten(0, 1)
    losses = token_cross_entropy(x, model.output_weight, batch.targets.flatten(),
                                 model.config.logit_softcap)
    return losses.view_as(batch.targets)


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
