"""How well a model predicts text: loss in nats per token, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.batches import IGNORE, SizedBatches
from gpt.evaluation import dealt, in_format
from gpt.machine.device import Machine
from gpt.machine.progress import progress_bar
from gpt.model import GPT
from gpt.runs.checkpoint import TrainState
from gpt.training.objective import summed_loss
from gpt.training.telemetry import Log


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


def validate(model: GPT, batches: SizedBatches, byte_lengths: Tensor, machine: Machine, dtype: str,
             measure: Callable[[], Measured], log: Log, state: TrainState
             ) -> tuple[Score, dict[str, float]]:
    """Score the validation split while training, and tell it; returns the score and what else was
    measured, by name."""
    with progress_bar("evaluating", len(batches), "batch") as bar:
        score = evaluate(model, batches, byte_lengths, machine.measuring(dtype), bar.update)
    model.eval()
    figures, texts = measure()
    model.train()
    log.event("eval", state.step, tokens=state.tokens, elapsed_seconds=state.elapsed_seconds,
              val_loss=score.loss, val_bits_per_byte=score.bits_per_byte, dtype=dtype,
              **{f"val_{name}": value for name, value in figures.items()})
    log.say(", ".join([
        f"step {state.step}: validation loss {score.loss:.4f} nats per token",
        f"{score.bits_per_byte:.4f} bits per byte{in_format(dtype)}",
        *(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())]))
    for prompt, text in texts:
        log.sample(state.step, prompt, text)
    return score, figures
