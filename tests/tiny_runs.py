"""Tiny optimizers, steps and whole training runs that tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt import parallel
from gpt.batches import IGNORE, Batches, EvaluationWindows, MicroBatch, Order, Shuffled, Windows
from gpt.configuration import OptimConfig, RunSections
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.optim import Optimizer, Rates, WeightAverage, build_optimizer
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState
from gpt.tokenizer import build_tokenizer
from gpt.training.budget import Budget
from gpt.training.loop import Trainer
from gpt.training.objective import NextToken, Objective
from gpt.training.telemetry import RunLog
from tests.tiny import CPU, random_tokens, tiny_gpt, tokenized

CLOCKS = {"elapsed_seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "data_seconds"}


def rates(name: str = "adamw", lr: float = 1e-2, muon_lr: float = 0.02, beta2: float = 0.95,
          ema_decay: float | None = None) -> Rates:
    """Rates for a tiny model."""
    return Rates(name, lr, muon_lr, beta2, ema_decay)


def optimizer_of(model: GPT, optim: OptimConfig | None = None, **changes: Any) -> Optimizer:
    """The optimizer that training builds, at these rates."""
    return build_optimizer(model, optim or OptimConfig(), rates(**changes))


def batch_of(rows: int = 8, length: int = 12, seed: int = 0, vocab_size: int = 61) -> MicroBatch:
    """Random tokens, of which each row supervises another number."""
    tokens = random_tokens(rows, length + 1, vocab_size=vocab_size, seed=seed)
    targets = tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, length - row % length:] = IGNORE
    return MicroBatch(tokens[:, :-1], targets, rows * length)


def accumulate_gradients(model: GPT, batch: list[MicroBatch], machine: Machine,
                         objective: Objective | None = None) -> Tensor:
    """Gradients of one process's batch; returns its mean loss."""
    objective = objective or NextToken()
    return parallel.accumulate_gradients(parallel.Laid(model, objective, machine), batch,
                                         max(1, sum(map(objective.count, batch))), machine)


def clip_gradients(model: GPT, limit: float) -> Tensor:
    """As a step clips them."""
    return parallel.Layout(CPU).clip(model, limit)[0]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of several tensors in a row."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def weights_of(model: GPT) -> Tensor:
    """A copy of all weights, in a row."""
    return flat(list(model.parameters())).clone()


def words(length: int = 6000) -> np.ndarray:
    """A text over 61 tokens that can be learned: each token mostly follows from the last."""
    draw = np.random.Generator(np.random.PCG64(0))
    jumps, tokens = draw.random(length) < 0.1, np.zeros(length, np.int64)
    for i in range(1, length):
        tokens[i] = draw.integers(60) if jumps[i] else (7 * tokens[i - 1] + 3) % 60
    return tokens


def trainer_of(folder: Path, machine: Machine, steps: int | None = 6, seconds: float | None = None,
               ema_decay: float | None = None, model: dict[str, Any] | None = None,
               sample: Callable[[GPT], Callable[[str], str]] | None = None, name: str = "adamw",
               batch_size: int = 4, micro_batch_size: int = 4, evaluate_first: bool = False,
               **sections: dict[str, Any]) -> Trainer:
    """A whole run of a tiny model on `words`, put together as train_task does.

    It continues from the newest checkpoint in its folder. sample: given the model, what writes
    text after a prompt. sections: of the configuration.
    """
    folder.mkdir(exist_ok=True)
    optim = {"warmup_steps": 2, "schedule": "constant", **sections.pop("optim", {})}
    config = RunSections(**{"optim": optim, **sections})
    machine.seed_step()
    gpt = tiny_gpt(zero_outputs=True, **{"n_layer": 1, "vocab_size": 257, **(model or {})})
    machine.place(gpt)
    optimizer = optimizer_of(gpt, config.optim, name=name, ema_decay=ema_decay)
    newest, state = checkpoint.newest_sound(folder / "checkpoints"), TrainState()
    if newest is not None:
        state = checkpoint.load_training(newest, gpt, optimizer)
    average = WeightAverage.continued(gpt, optimizer.state, ema_decay)
    text, end = words(), 60
    batches = Batches(Shuffled(Windows(tokenized(text, 257, end), 16), 0),
                      Order(batch_size, micro_batch_size))
    return Trainer(gpt, optimizer, batches.step,
                   lambda: EvaluationWindows(tokenized(text[:400], 257, end), 16, 8),
                   build_tokenizer("byte"), config, Budget(steps, seconds), machine, folder,
                   RunLog(folder, config.log, {}, state.step), state,
                   sample(gpt) if sample else lambda prompt: "", average, evaluate_first,
                   origins=batches.origins)


def finish(trainer: Trainer) -> list[dict[str, Any]]:
    """Train to the end; what was logged."""
    try:
        trainer.run()
    finally:
        trainer.log.close()
    return logged(trainer.folder)


def logged(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what clocks and memory say."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]
