"""The two kinds of model that benchmarks/lstm.py compares, and how both are trained.

The Transformer is gpt.model.GPT as train.py has it by default; the LSTM is torch's nn.LSTM between
an embedding and one score per token, as wide as gives it as many parameters.

Shape letters: B rows, T tokens of a row, V vocabulary, W width of the LSTM, L its layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import ModelConfig, OptimConfig
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.optim import Rates, build_optimizer

KINDS = ("transformer", "lstm")
LSTM_LAYERS = 2
WARMUP, CLIP, BETAS = 0.1, 1.0, (0.9, 0.95)  # of the budget; of the gradient's norm; of AdamW
IGNORED = -100  # a target that counts nothing
State = tuple[Tensor, Tensor]
Draw = Callable[[int], tuple[Tensor, Tensor]]  # step -> inputs and targets, (B, T) int64 each


class LSTM(nn.Module):
    """Embedding, stacked LSTM layers as wide as it, one score per token of the vocabulary.

    Recurrent matrices begin orthogonal (Saxe et al. 2014, arXiv:1312.6120), those of inputs as
    Glorot and Bengio 2010, biases at zero but the forget gate's at one (Jozefowicz et al. 2015).
    """

    def __init__(self, vocab_size: int, width: int, n_layer: int = LSTM_LAYERS):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.LSTM(width, width, n_layer, batch_first=True)
        self.lm_head = nn.Linear(width, vocab_size)
        for name, weight in self.layers.named_parameters():
            if name.startswith("weight"):
                begin = nn.init.orthogonal_ if "_hh_" in name else nn.init.xavier_uniform_
                for gate in weight.data.chunk(4):
                    begin(gate)
            else:
                nn.init.constant_(weight, 0)
                if "_ih_" in name:  # the other bias is added to it
                    nn.init.constant_(weight.data.chunk(4)[1], 1)  # torch's order: i, f, g, o

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of every next token, from an empty state.  (B, T) int64 -> (B, T, V)"""
        return self.read(tokens)[0]

    def read(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The same behind what was read before, and the new state: h and c, (L, B, W) each."""
        x, state = self.layers(self.embedding(tokens), state)
        return self.lm_head(x), state


Model = GPT | LSTM


def lstm_parameters(vocab_size: int, width: int, n_layer: int = LSTM_LAYERS) -> int:
    """Of an LSTM: four gates of two matrices and two biases a layer, embedding and output layer."""
    return n_layer * 8 * width * (width + 1) + vocab_size * (2 * width + 1)


def lstm_width(vocab_size: int, parameters: int, n_layer: int = LSTM_LAYERS) -> int:
    """The width whose number of parameters is nearest."""
    return min(range(1, 4096),
               key=lambda width: abs(lstm_parameters(vocab_size, width, n_layer) - parameters))


def build(kind: str, vocab_size: int, shape: dict[str, int], seed: int = 0) -> Model:
    """A fresh model: the Transformer of that shape, or the LSTM with as many parameters."""
    torch.manual_seed(seed)
    transformer = GPT(ModelConfig(vocab_size=vocab_size, **shape))
    if kind == "transformer":
        return transformer
    torch.manual_seed(seed)
    return LSTM(vocab_size, lstm_width(vocab_size, parameter_count(transformer)))


def training_flops(model: Model, T: int) -> int:
    """Model FLOPs to train on one token of a row of T: forward, and twice that backward.

    LSTM: 6 for each parameter that multiplies, which those of the embedding do not.
    """
    if isinstance(model, GPT):
        return flops_per_token(model, T)
    return 6 * (parameter_count(model) - model.embedding.weight.numel())


@dataclass(frozen=True)
class Look:
    """How far training has come. seconds: of training alone. value: what was looked for."""

    step: int
    seconds: float
    value: float = math.nan


class Optimizer(Protocol):
    """What training asks of one; the toolkit's own are such."""

    def set_lr(self, factor: float) -> object:
        """Take this share of the peak learning rate."""

    def step(self) -> object:
        """Update the weights by their gradients."""

    def zero_grad(self) -> object:
        """Drop all gradients."""


class AdamW(torch.optim.AdamW):
    """For either kind of model, all weights at one rate."""

    def __init__(self, model: Model, rate: float):
        super().__init__(model.parameters(), lr=rate, betas=BETAS, fused=True)
        self._rate = rate

    def set_lr(self, factor: float) -> None:
        """Take this share of the rate."""
        self.param_groups[0]["lr"] = factor * self._rate


def toolkit_optimizer(model: GPT, tokens_per_step: int) -> Optimizer:
    """What train.py takes by default: Muon for the matrices of blocks, AdamW for the rest."""
    optim = OptimConfig(name="muon")
    return build_optimizer(model, optim, Rates.of(optim, model.config, tokens_per_step))


def train(model: Model, optimizer: Optimizer, draw: Draw, *, seconds: float = math.inf,
          steps: float = math.inf, look: Callable[[Model], float] | None = None, looks: int = 0
          ) -> list[Look]:
    """Train until the time or the steps are used up; what `look` found, so many times on the way
    and at the end. Time that looking takes does not count.

    The rate rises over the first tenth of the budget and falls to zero as a cosine.
    """
    found: list[Look] = []
    step, spent = 0, 0.0
    while (progress := max(spent / seconds, step / steps)) < 1:
        if look is not None and len(found) < looks and progress >= len(found) / looks:
            found.append(Look(step, spent, look(model)))
        start = time.perf_counter()
        optimizer.set_lr(min(progress / WARMUP, 0.5 + 0.5 * math.cos(math.pi * progress)))
        take_step(model, optimizer, *draw(step))
        spent += time.perf_counter() - start
        step += 1
    return [*found, Look(step, spent) if look is None else Look(step, spent, look(model))]


def take_step(model: Model, optimizer: Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """Forward, backward, clip, update."""
    optimizer.zero_grad()
    loss_of(model, inputs, targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


def loss_of(model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
    """Nats per target: (B, T), (B, T) -> ()"""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
