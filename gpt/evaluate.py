"""How well a model predicts text: loss in nats per token, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.batches import IGNORE, MicroBatch
from gpt.cross_entropy import summed_cross_entropy
from gpt.model import GPT
from gpt.runtime import Machine


@dataclass(frozen=True)
class Score:
    """The result of an evaluation."""

    loss: float  # nats per supervised token
    bits_per_byte: float  # comparable across tokenizers, and with what compressors reach
    tokens: int


def summed_loss(model: GPT, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood summed over a batch's supervised targets, in nats; ()."""
    x = model.hidden(batch.inputs, segments=batch.segments).flatten(0, 1)
    return summed_cross_entropy(x, model.output_weight, batch.targets.flatten(),
                                model.config.logit_softcap)


def token_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where unsupervised; (B, T) -> (B, T)."""
    logits = model(inputs).float().flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


@torch.inference_mode()
def evaluate(model: GPT, batches: Iterable[MicroBatch], byte_lengths: Tensor,
             machine: Machine, on_batch: Callable[[], object] = lambda: None) -> Score:
    """Score every supervised target once. byte_lengths: (V,) bytes of text per token id."""
    was_training = model.training
    model.eval()
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
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
