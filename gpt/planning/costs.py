"""What a run of some size reads and takes, within what there is to spend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any, NamedTuple

import torch

from gpt.configuration import PretrainConfig
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.planning.devices import Device, Speed
from gpt.planning.sizes import SIZES, Size, configuration
from gpt.shards import Dataset
from gpt.training.pretraining import with_vocabulary

FEWEST_STEPS = 20  # that a run can have
START_SECONDS = 5.0  # to import torch, open the dataset, and write the report


@dataclass(frozen=True)
class Goal:
    """What there is to spend: one of the three."""

    seconds: float | None = None
    flops: float | None = None
    tokens: float | None = None


class Counts(NamedTuple):
    """What a model has. layer_parameters: without embeddings, as laws count (Kaplan et al. 2020)"""

    parameters: int
    layer_parameters: int
    flops_per_token: int

    @classmethod
    def of(cls, config: PretrainConfig) -> Counts:
        """Nothing is allocated."""
        with torch.device("meta"):
            model = GPT(config.model)
        return cls(parameter_count(model), parameter_count(model.blocks), flops_per_token(model))


@dataclass(frozen=True)
class Cost:
    """A run of one size, and what it takes.

    steps: updates; where the configuration has minutes, as many as are expected in them.
    """

    size: Size
    config: PretrainConfig
    steps: int
    counts: Counts
    speed: Speed
    memory: int  # bytes of a device, at most, besides those of Python and torch

    @property
    def tokens_per_step(self) -> int:
        """Of all devices."""
        return self.config.train.sequences_per_step * self.config.model.block_size

    @property
    def tokens(self) -> int:
        """That the run reads."""
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Of steps, without what a run does besides."""
        return self.tokens_per_step / self.speed.seconds_per_step

    @property
    def seconds(self) -> float:
        """Of the whole command."""
        return START_SECONDS + self.speed.seconds_besides + self.steps * self.speed.seconds_per_step


class Costs:
    """What sizes cost on a device, each found out once.

    given: values of a configuration, by section, which all runs have.
    """

    def __init__(self, dataset: Dataset, goal: Goal, device: Device, given: dict[str, Any]):
        self.device, self.goal, self.epoch = device, goal, len(dataset.train)
        self._dataset, self._given = dataset, given
        self._known: dict[Size, Cost] = {}
        self._counts: dict[Size, Counts] = {}

    def of(self, size: Size) -> Cost:
        """As it is measured without compiling, which takes long."""
        if size not in self._known:
            config = self.configuration(size, self.roughly(size))
            eager = config.model_copy(update={
                "run": config.run.model_copy(update={"compile": False})})
            self._known[size] = self._spending(size, eager, self.device.speed(eager))
        return self._known[size]

    def as_it_will_go(self, size: Size) -> Cost:
        """With the batches that suit what it reads, compiled where that pays, and timed anew."""
        config = self._by_the_clock(self.configuration(size, self.of(size).tokens))
        return self._spending(size, config, self.device.speed(config))

    def at(self, cost: Cost, speeds: Sequence[Speed]) -> Cost:
        """As long as it can be at the mean of some speeds."""
        return self._spending(cost.size, cost.config, Speed(
            *(fmean(getattr(speed, field.name) for speed in speeds) for field in fields(Speed))))

    def configuration(self, size: Size, tokens: float) -> PretrainConfig:
        """A run of a size that reads about so many tokens of this text."""
        made = configuration(str(self._dataset.folder), size, tokens, self._given)
        return self.device.fitted(with_vocabulary(made, self._dataset))

    def roughly(self, size: Size) -> float:
        """Tokens that can be spent, before anything was measured."""
        if self.goal.tokens is not None:
            return self.goal.tokens
        flops = self.goal.flops or (self.goal.seconds or 0.0) * self.device.flops
        return flops / self.counts(size).flops_per_token

    def counts(self, size: Size) -> Counts:
        """What a model of a size has."""
        if size not in self._counts:
            self._counts[size] = Counts.of(self.configuration(size, 1e6))
        return self._counts[size]

    def fits(self, size: Size) -> bool:
        """Whether a device has the memory."""
        config = self.configuration(size, self.roughly(size))
        return self.device.memory_taken(config) <= self.device.memory

    def _spending(self, size: Size, config: PretrainConfig, speed: Speed) -> Cost:
        """As many steps as can be paid for."""
        steps = config.train.steps or 0
        if self.goal.seconds is not None:
            left = self.goal.seconds - START_SECONDS - speed.seconds_besides
            steps = max(1, int(left / speed.seconds_per_step))
        return Cost(size, self._by_the_clock(config, speed.seconds_after), steps,
                    self.counts(size), speed, self.device.memory_taken(config))

    def _by_the_clock(self, config: PretrainConfig, seconds_after: float = 0.0) -> PretrainConfig:
        """The run for as long as is asked for, if that is a time: steps as they come."""
        if self.goal.seconds is None:
            return config
        minutes = round((self.goal.seconds - START_SECONDS - seconds_after) / 60, 3)
        return config.model_copy(update={"train": config.train.model_copy(update={
            "steps": None, "max_minutes": minutes})})


def best_size(costs: Costs, loss: Callable[[int, float], float]) -> Size | None:
    """The size that ends with the least loss, of those for which there is memory; None: of none.

    loss: what to expect of (parameters of layers, tokens). It has one valley along the sizes, in
    which a few steps downhill end. For a given number of tokens the largest model for which no
    smaller one would do better with the same arithmetic.
    """
    sizes, goal = [size for size in SIZES if costs.fits(size)], costs.goal
    if goal.tokens is not None:
        return next((size for size in reversed(sizes)
                     if _is_worth_it(size, costs, loss, goal.tokens)), None)
    if not sizes:
        return None

    def after(place: int) -> float:
        size = sizes[place]
        if goal.seconds is None:
            tokens = costs.roughly(size)
            steps = costs.configuration(size, tokens).train.steps or 0
        else:
            tokens, steps = costs.of(size).tokens, costs.of(size).steps
        return (loss(costs.counts(size).layer_parameters, tokens) if steps >= FEWEST_STEPS
                else math.inf)

    place = min(range(len(sizes)), key=lambda i: loss(costs.counts(sizes[i]).layer_parameters,
                                                      costs.roughly(sizes[i])))
    while True:
        near = range(max(0, place - 1), min(len(sizes), place + 2))
        best = min(near, key=after)
        if best == place:
            return sizes[place]
        place = best


def _is_worth_it(size: Size, costs: Costs, loss: Callable[[int, float], float], tokens: float
                 ) -> bool:
    _, parameters, flops = costs.counts(size)
    smaller = (costs.counts(other) for other in SIZES[:SIZES.index(size)])
    return all(loss(parameters, tokens) <= loss(count, tokens * flops / each)
               for _, count, each in smaller)
