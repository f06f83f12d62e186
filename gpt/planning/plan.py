"""What to train on a text with what there is to spend, and what it will give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.planning.costs import FEWEST_STEPS, START_SECONDS, Cost, Costs, Goal, best_size
from gpt.planning.devices import GIB, Device, ThisMachine
from gpt.planning.law import Forecast, Law, OneText, Run, Text, known_texts
from gpt.planning.pilots import Pilot, train
from gpt.planning.sizes import BLOCK_SIZE, SIZES, Size, sequences_per_step
from gpt.shards import Dataset, sampled_counts

PILOTS = (1 / 8, 1 / 2)  # of the tokens of the run
PILOT_SECONDS = 200.0  # of all of them at most, without their evaluations
PILOT_STEPS = 150  # of each, at least: else it has hardly begun
ENTROPY_TOKENS = 2_000_000
TOO_FEW_STEPS, FAR = 500, 2.0


@dataclass(frozen=True)
class Plan:
    """A run, what it takes, and what it is to give."""

    cost: Cost
    device: Device
    epoch: int  # tokens of the training split
    given: dict[str, Any]
    forecast: Forecast  # nats per token
    bits_per_byte: Forecast
    pilots: Sequence[Pilot]
    doubts: Sequence[str]


def planned(dataset: Dataset, goal: Goal, device: Device, machine: Machine, given: dict[str, Any],
            say: Callable[[str], object]) -> Plan:
    """Choose a size by what all texts have in common, and try it on this one.

    machine: where short runs are made. given: values of a configuration, by section, which win.
    say: told what is done, a line at a time. Raises UserError where nothing can be planned.
    """
    if not len(dataset.val):
        raise UserError(f"{dataset.folder} has no validation split, and a loss can only be "
                        "foretold of one: prepare it with val_fraction")
    law, entropy = Law.calibrated(list(known_texts().values())), entropy_of(dataset)
    costs = Costs(dataset, goal, device, given)
    say(f"on         {device}")
    prior = law.of(Text(entropy, ()))
    size = best_size(costs, losses(prior, costs))
    if size is None:
        raise UserError(f"{device.memory / GIB:.3g} GiB are too little for the smallest model that "
                        "is planned with: give more --memory")
    cost = costs.as_it_will_go(size)
    if cost.steps < FEWEST_STEPS:
        raise UserError(f"that is enough for {cost.steps} steps of {size}, and a run has "
                        f"{FEWEST_STEPS} at least: give more")
    pilots, speeds = [], [cost.speed]
    here = Costs(dataset, Goal(seconds=PILOT_SECONDS + START_SECONDS),
                 ThisMachine(machine, dataset), given)
    for tried, tokens in pilot_runs(cost, costs, prior, here):
        pilots.append(train(costs.configuration(tried, tokens), dataset, machine))
        say(f"tried      {pilots[-1]}")
        speeds.append(device.speed(cost.config))  # a machine's neighbours come and go
    cost = costs.at(cost, speeds)
    own = law.of(Text(entropy, tuple(pilot.run for pilot in pilots)))
    forecast = own.forecast(Run(cost.counts.layer_parameters, cost.tokens, costs.epoch))
    return Plan(cost, device, costs.epoch, given, forecast, forecast.times(bits_per_nat(dataset)),
                pilots, doubts_of(cost, law, pilots, costs.epoch, device))


def losses(own: OneText, costs: Costs) -> Callable[[int, float], float]:
    """What to expect of (parameters of layers, tokens)."""
    return lambda parameters, tokens: own.forecast(Run(parameters, tokens, costs.epoch)).loss


def pilot_runs(cost: Cost, costs: Costs, prior: OneText, here: Costs) -> list[tuple[Size, float]]:
    """(size, tokens) of short runs: of the planned size, where that can be tried here in time, else
    of the size that does best in that time."""
    seconds = sum(PILOTS) * cost.steps * cost.speed.seconds_per_step
    size, tokens = cost.size, float(cost.tokens)
    if not costs.device.is_measured or seconds > PILOT_SECONDS:
        size = best_size(here, losses(prior, here)) or SIZES[0]
        tokens = here.of(size).tokens / sum(PILOTS)
    block_size = cost.config.model.block_size
    least = PILOT_STEPS * block_size * sequences_per_step(size, 1.0, block_size)
    return [(size, each) for each in sorted({max(share * tokens, least) for share in PILOTS})]


def entropy_of(dataset: Dataset) -> float:
    """Nats per token of knowing how often each token occurs."""
    counts = sampled_counts(dataset.train, dataset.tokenizer.vocab_size, ENTROPY_TOKENS)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def bits_per_nat(dataset: Dataset) -> float:
    """From nats per token of the validation split to bits per byte."""
    held = dataset.manifest.splits["val"]
    return held.tokens / max(1, held.bytes) / math.log(2)


def doubts_of(cost: Cost, law: Law, pilots: Sequence[Pilot], epoch: int, device: Device
              ) -> list[str]:
    """Where the forecast goes beyond what it was learned from."""
    doubts = [] if device.is_measured else ["speed and time: nothing was measured on that device"]
    runs = [run for text in law.texts for run in text.runs]
    known = {name: max(getattr(run, name) for run in runs) for name in ("parameters", "tokens")}
    for name, planned_for in (("parameters", cost.counts.layer_parameters),
                              ("tokens", cost.tokens)):
        if planned_for > FAR * known[name]:
            doubts.append(f"the loss: {planned_for / known[name]:,.1f} times the {name} of the "
                          "largest run that the law is learned from")
    epochs, seen = cost.tokens / epoch, max(run.tokens / run.epoch for run in runs)
    if round(epochs) > round(seen):
        doubts.append(f"the loss: the text is read {epochs:,.0f} times, and the law has seen "
                      f"{seen:.0f}")
    longest = max((pilot.run.tokens for pilot in pilots), default=0)
    if cost.tokens > 2 * longest / PILOTS[-1]:
        doubts.append(f"the loss: {cost.tokens / longest:,.0f} times the tokens of the longest run "
                      "that was tried")
    if cost.config.model.block_size != BLOCK_SIZE:
        doubts.append(f"the loss: the law has seen contexts of {BLOCK_SIZE} tokens alone")
    if cost.steps < TOO_FEW_STEPS:
        doubts.append(f"the loss: {cost.steps} steps are few, and laws hold for longer runs")
    return doubts
