"""What runs differ in: their settings, and their losses with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpt.runs.history import Array, History, number

RESAMPLES = 2000
BLOCKS = 50  # that a stretch is cut into: steps next to each other are alike, blocks much less
LAST = 0.1  # the share of a run that its end is judged by
SEED = 0
INTERVAL = (2.5, 97.5)  # percent
PLACES = 40  # along which differences are drawn, at most
FEWEST_STEPS = 20  # of a stretch that is cut into blocks
# What the order of the data follows from, and what a loss is counted in.
READ_BY = ("data", "data.packing", "finetune.data", "run.seed", "train.batch_size",
           "model.block_size", "tokenizer")


@dataclass(frozen=True)
class Difference:
    """By how much a loss is higher than another, in nats per token, with its 95 % interval.

    paired: both read the same data in the same order, so that what they read cancels out.
    """

    mean: float
    low: float
    high: float
    steps: int
    paired: bool


def at_the_end(run: History, other: History) -> Difference | None:
    """How much higher the training loss of `run` is over the last tenth of what both have read.

    None if they have too few steps in common, or other tokens.
    """
    reach = min(_reach(run), _reach(other))
    return between(run, other, reach * (1 - LAST), reach)


def along(run: History, other: History) -> list[tuple[float, Difference]]:
    """The same for stretches of all that both have read: (tokens at its middle, difference)."""
    reach = min(_reach(run), _reach(other))
    steps = min(len(_stretch(one, 0, reach)[1]) for one in (run, other))
    edges = np.linspace(0, reach, min(PLACES, steps // (2 * FEWEST_STEPS)) + 1)
    found = [((low + high) / 2, between(run, other, low, high))
             for low, high in pairwise(edges.tolist())]
    return [(place, difference) for place, difference in found if difference is not None]


def between(run: History, other: History, low: float, high: float) -> Difference | None:
    """The same where `low` to `high` tokens had been read.

    Bootstrap over blocks of consecutive steps: Künsch 1989. The interval says how certain the means
    of these two runs are; other seeds would scatter beyond it.
    """
    (tokens, losses), (other_tokens, other_losses) = (_stretch(one, low, high)
                                                      for one in (run, other))
    if min(len(losses), len(other_losses)) < FEWEST_STEPS or not share(run, other, "tokenizer"):
        return None
    draws = np.random.default_rng(SEED)
    if paired := np.array_equal(tokens, other_tokens) and share(run, other, *READ_BY):
        differences = losses - other_losses
        means = _resampled(differences, draws)
    else:
        means = _resampled(losses, draws) - _resampled(other_losses, draws)
    bounds = np.percentile(means, INTERVAL)
    return Difference(float(losses.mean() - other_losses.mean()), float(bounds[0]),
                      float(bounds[1]), len(losses), paired)


def _resampled(values: Array, draws: np.random.Generator) -> Array:
    """Means of samples that the values could have been.  (n,) -> (RESAMPLES,)"""
    blocks = np.array_split(values, min(BLOCKS, len(values) // 2))
    sums, sizes = np.array([block.sum() for block in blocks]), np.array([*map(len, blocks)])
    chosen = draws.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    return sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)


def share(run: History, other: History, *names: str) -> bool:
    """Whether these are the same of both, as far as it is known."""
    return all(run.identity.get(name) == other.identity.get(name) for name in names)


def _reach(run: History) -> float:
    return run.last("tokens") or 0.0


def _stretch(run: History, low: float, high: float) -> tuple[Array, Array]:
    """(tokens, losses) of the steps in between."""
    if not {"tokens", "loss"} <= run.steps.keys():
        return np.empty(0), np.empty(0)
    tokens, losses = run.steps["tokens"], run.steps["loss"]
    inside = (tokens > low) & (tokens <= high) & np.isfinite(losses)
    return tokens[inside], losses[inside].astype(np.float64)


def validation(run: History, other: History) -> tuple[int, float] | None:
    """(step, how much higher the loss of `run` is) at the last step at which both were scored.

    None if there is none, or if they were not scored on the same text.
    """
    if not share(run, other, "data", "finetune.data", "finetune.val_data", "tokenizer"):
        return None
    own, others = ({line["step"]: loss for line in one.evaluations
                    if (loss := number(line.get("val_loss"))) is not None
                    and isinstance(line.get("step"), int)} for one in (run, other))
    step = max(own.keys() & others.keys(), default=None)
    return None if step is None else (step, own[step] - others[step])


def settings(runs: Sequence[History]) -> list[list[Any]]:
    """[field, its value in each run] for each field in which they are not all alike."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [[name, *(run.settings.get(name, "–") for run in runs)] for name in names
            if name not in ("run.name", "run.out_dir")]
    return [row for row in rows if any(value != row[1] for value in row[2:])]
