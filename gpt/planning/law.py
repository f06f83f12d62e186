"""What the loss of a run follows from, learned from runs on some texts, for other texts.

    L = E + (H - E) / (1 + e^z),    z = beta log(d' / c) + g(d),    1 / d' = 1 / d + ratio n^-gamma

n: parameters of the layers, embeddings not counted; d: tokens read; both in millions. Text that is
read again is worth less each time. H: the entropy of how often tokens occur, the loss of a model
that has learned nothing else yet; E: the floor, a share of it. d' is what a model makes of d: a
small one stops learning sooner. c and beta are a text's own; the rest, the shape, is taken to be
the same for all, and so is g, a small bend: models learn faster at times, as when they begin to
copy. law.json has the runs that it is learned from, and benchmarks/scaling_law.py makes them.

Source: Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5, between a start and a floor; Hoffmann
et al. 2022 (arXiv:2203.15556) for the floor; Muennighoff et al. 2023 (arXiv:2305.16264) for what is
read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gpt.files import read_json

Array: TypeAlias = np.ndarray[Any, Any]

RATIOS = (0.0125, 0.025, 0.05, 0.1, 0.2)
GAMMAS = (0.3, 0.6, 1.0, 1.5)
PATIENCES = (0.5, 1.0, 2.0, 4.0, 8.0)  # epochs until reading again is worth nothing
FLOORS = (0.0, 0.05, 0.1, 0.15, 0.2)  # shares of the entropy
BENDS = np.log([0.25, 0.5, 1, 2, 4])  # of tokens in millions, between which g is straight
SMALL = 1.0  # nats²: how much the bend is kept small
NOISE = 0.01  # nats: at least what another seed changes
VAGUE = np.diag([0.05, 0.01])  # variances that texts may differ by beyond those of the law
UNLIKELY = 1e-4
# Student's t: within so many deviations 95 of 100 lie, where the deviation is known from 2, 3, …
# texts alone.
DEVIATIONS = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Run(NamedTuple):
    """What was trained, for how long, and what came of it."""

    parameters: float  # of layers
    tokens: float  # read, those of all epochs
    epoch: float  # tokens of the training split
    loss: float = float("nan")  # nats per token of the validation split


@dataclass(frozen=True)
class Text:
    """Runs on one text. entropy: of how often each token occurs, in nats."""

    entropy: float
    runs: Sequence[Run]


class Shape(NamedTuple):
    """What all texts share."""

    ratio: float
    gamma: float
    patience: float
    floor: float


class Forecast(NamedTuple):
    """A loss to expect, and where it lies in 95 of 100 cases: nats per token."""

    loss: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.loss:.3f} ({self.low:.3f} to {self.high:.3f})"

    def times(self, factor: float) -> Forecast:
        """In another unit."""
        return Forecast(*(factor * each for each in self))


def known_texts() -> dict[str, Text]:
    """What comes with the toolkit, by name."""
    texts = read_json(Path(__file__).with_name("law.json"))["texts"]
    return {name: Text(text["entropy"], [Run(*run) for run in text["runs"]])
            for name, text in texts.items()}


class Law:
    """What the runs on some texts say of another one, of which there are a few short runs.

    For each shape the mean and the covariance of what is a text's own are those among the law's
    texts; short runs on the text at hand then say more (linear regression by Bayes' rule), and how
    well all runs agree with a shape is its weight.
    """

    def __init__(self, texts: Sequence[Text], widened: float = 1.0):
        """widened: by what intervals are wider than the spread among the texts makes them."""
        self.texts, self._widened = texts, widened
        self._beliefs = [_Belief.of(texts, Shape(*chosen)) for chosen in itertools.product(
            RATIOS, GAMMAS, PATIENCES, FLOORS)]

    @classmethod
    def calibrated(cls, texts: Sequence[Text]) -> Law:
        """With intervals as wide as the texts ask for: each one's longest run is foretold from the
        others and from its own runs that were half as long at most."""
        squares = []
        for text in texts:
            longest = max(text.runs, key=lambda run: (run.tokens, run.parameters))
            tried = [run for run in text.runs if run.parameters == longest.parameters
                     and run.tokens < 0.6 * longest.tokens]
            law = cls([other for other in texts if other is not text])
            mean, variance = law.of(replace(text, runs=tried)).moments(longest)
            squares.append((longest.loss - mean) ** 2 / variance)
        return cls(texts, max(1.0, fmean(squares) ** 0.5))

    def of(self, text: Text) -> OneText:
        """The law of a text, from what is known of all and of this one."""
        learned = [belief.having_seen(text) for belief in self._beliefs]
        logs = np.array([belief.log_evidence for belief in learned])
        weights = np.exp(logs - logs.max())
        likely = weights > UNLIKELY
        return OneText(text.entropy, [one for one, there in zip(learned, likely, strict=True)
                                      if there], weights[likely] / weights[likely].sum(),
                       self._widened * DEVIATIONS[min(len(self.texts) - 1, len(DEVIATIONS)) - 1])


class OneText:
    """The law of one text."""

    def __init__(self, entropy: float, beliefs: Sequence[_Belief], weights: Array,
                 deviations: float):
        self._entropy, self._beliefs, self._weights = entropy, beliefs, weights
        self._deviations = deviations

    def forecast(self, run: Run) -> Forecast:
        """What a run is to give."""
        mean, variance = self.moments(run)
        apart = self._deviations * variance**0.5
        return Forecast(mean, max(0.0, mean - apart), mean + apart)

    def moments(self, run: Run) -> tuple[float, float]:
        """(mean, variance) of its loss, by the spread among the law's texts"""
        each = [belief.forecast(run, self._entropy) for belief in self._beliefs]
        means, variances = np.array(each).T
        mean = float(self._weights @ means)
        return mean, float(self._weights @ (variances + (means - mean) ** 2))


@dataclass(frozen=True)
class _Belief:
    """Of one shape: what is a text's own, -beta log c and beta, and how far all agree with it.

    bend: g at each of BENDS.
    """

    shape: Shape
    bend: Array
    mean: Array  # (2,)
    covariance: Array  # (2, 2)
    noise: float  # variance of a loss, nats²
    log_evidence: float

    @classmethod
    def of(cls, texts: Sequence[Text], shape: Shape) -> _Belief:
        """From the law's texts: least squares for each."""
        lines = [_line(text, shape) for text in texts]
        bend = _bend(lines)
        found, squares, free = [], 0.0, 0
        for x, near, z, slope in lines:
            straight = z - near @ bend
            own = np.linalg.lstsq(x * slope[:, None], straight * slope, rcond=None)[0]
            found.append(own)
            squares += float(np.sum(((straight - x @ own) * slope) ** 2))
            free += len(z) - len(own)
        noise = max(squares / max(1, free), NOISE**2)
        among = np.stack(found)
        return cls(shape, bend, among.mean(axis=0), np.cov(among.T) * (1 + 1 / len(texts)) + VAGUE,
                   noise, -0.5 * (squares / noise + free * float(np.log(noise))))

    def having_seen(self, text: Text) -> _Belief:
        """After some runs on a text. Source: Bishop 2006, sections 3.3 and 3.5."""
        if not text.runs:
            return self
        x, near, z, slope = _line(text, self.shape)
        spread = x @ self.covariance @ x.T + np.diag(self.noise / slope**2)
        gain = np.linalg.solve(spread, x @ self.covariance).T
        apart = z - near @ self.bend - x @ self.mean
        log_volume = float(np.linalg.slogdet(spread)[1]) + 2 * float(np.log(slope).sum())
        evidence = -0.5 * (float(apart @ np.linalg.solve(spread, apart)) + log_volume)
        return replace(self, mean=self.mean + gain @ apart,
                       covariance=self.covariance - gain @ x @ self.covariance,
                       log_evidence=self.log_evidence + evidence)

    def forecast(self, run: Run, entropy: float) -> tuple[float, float]:
        """(mean, variance) of a run's loss"""
        (x,), (near,) = _terms([run], self.shape)
        left = 1 / (1 + float(np.exp(x @ self.mean + near @ self.bend)))  # to learn
        span = entropy * (1 - self.shape.floor)
        slope = span * left * (1 - left)
        return (entropy * self.shape.floor + span * left,
                float(x @ self.covariance @ x) * slope**2 + self.noise)


def _bend(lines: Sequence[tuple[Array, Array, Array, Array]]) -> Array:
    """What all texts have in common beside lines of their own: (len(BENDS),)"""
    left, right = SMALL * np.eye(len(BENDS)), np.zeros(len(BENDS))
    for x, near, z, slope in lines:
        own = np.linalg.qr(x * slope[:, None])[0]
        beside = near * slope[:, None]
        beside = beside - own @ (own.T @ beside)
        left += beside.T @ beside
        right += beside.T @ (z * slope)
    return np.linalg.solve(left, right)


def _line(text: Text, shape: Shape) -> tuple[Array, Array, Array, Array]:
    """(terms, near, z, dL/dz): (runs, 2), (runs, len(BENDS)), (runs,), (runs,). z is linear in the
    first two."""
    shares = np.array([run.loss for run in text.runs]) / text.entropy
    shares = np.clip(shares, shape.floor + 1e-3, 1 - 1e-3)
    z = np.log((1 - shares) / (shares - shape.floor))
    slope = text.entropy * (shares - shape.floor) * (1 - shares) / (1 - shape.floor)
    return *_terms(text.runs, shape), z, slope


def _terms(runs: Sequence[Run], shape: Shape) -> tuple[Array, Array]:
    """(1 and log d', how near d is to each of BENDS): (runs, 2), (runs, len(BENDS))"""
    n = np.array([run.parameters for run in runs]) / 1e6
    d = np.array([worth(run.tokens, run.epoch, shape.patience) for run in runs]) / 1e6
    near = np.stack([np.interp(np.log(d), BENDS, row) for row in np.eye(len(BENDS))], axis=1)
    return np.stack([np.ones_like(n), -np.log(1 / d + shape.ratio * n**-shape.gamma)],
                    axis=1), near


def worth(tokens: float, epoch: float, patience: float) -> float:
    """How many tokens that are all new would teach as much."""
    again = max(0.0, tokens / epoch - 1)
    return min(tokens, epoch) + epoch * patience * float(-np.expm1(-again / patience))
