"""What the loss of a run follows from, learned from runs on some texts, for other texts.

    L = E + (H - E) / (1 + e^z) + H m + R
    z = beta log(d' / c),    1 / d' = 1 / d + ratio n^-gamma

n: parameters of the layers, embeddings not counted; d: tokens read; both in millions. H: the
entropy of how often tokens occur, the loss of a model that has learned nothing else yet; E: the
floor, a share of it. d' is what a model makes of d: a small one stops learning sooner. c and beta
are a text's own; the rest, the shape, is taken to be the same for all. law.json has the runs that
it is learned from, and benchmarks/scaling_law.py makes them.

m: what is lost by learning by heart, 1 - e^-(price ((d / u - 1) n / u)^1.5) for a text of u tokens,
read d / u times: nothing while all of it is new; more, the more parameters there are for a token.
R: what is left to copy (copier.py). It falls all at once, at a time that differs, so that the rest,
the loss beside a copier, is what the law is fitted to; R is as in other texts.

Source: Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5, between a start and a floor; Hoffmann
et al. 2022 (arXiv:2203.15556) for the floor; Muennighoff et al. 2023 (arXiv:2305.16264) on text
that is read again, which there is worth less and here has a price, since losses rise in the end.
"""

from __future__ import annotations

import functools
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
PRICES = (0.0, 0.0015, 0.003, 0.0045, 0.006, 0.009)  # shares of the entropy, as are
FLOORS = (0.0, 0.05, 0.1, 0.15, 0.2)
NOISE = 0.01  # nats: at least what another seed changes
VAGUE = np.diag([0.05, 0.01])  # variances that texts may differ by beyond those of the law
UNLIKELY = 1e-4
LEAST = 1e-3  # of the entropy, that there is always left to copy
HELD = 0.5  # of what a text has left to copy beside others, a doubling later
# Student's t: within so many deviations 95 of 100 lie, where the deviation is known from 2, 3, …
# texts alone.
DEVIATIONS = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Run(NamedTuple):
    """What was trained, for how long, and what came of it."""

    parameters: float  # of layers
    tokens: float  # read, those of all epochs
    epoch: float  # tokens of the training split
    loss: float = float("nan")  # nats per token of the validation split
    beside: float = float("nan")  # the same, with a copier at the model's side


@dataclass(frozen=True)
class Text:
    """Runs on one text. entropy: of how often each token occurs, in nats."""

    entropy: float
    runs: tuple[Run, ...]


class Shape(NamedTuple):
    """What all texts share."""

    ratio: float
    gamma: float
    price: float
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
    return {name: Text(text["entropy"], tuple(Run(*run) for run in text["runs"]))
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
        self._copying = _Copying.of(texts)
        self._beliefs = [_Belief.of(texts, Shape(*chosen)) for chosen in itertools.product(
            RATIOS, GAMMAS, PRICES, FLOORS)]

    @classmethod
    def calibrated(cls, texts: Sequence[Text]) -> Law:
        """With intervals as wide as the texts ask for: each one's longest run is foretold from the
        others and from its own runs that were half as long at most."""
        squares = []
        for text in texts:
            longest = max(text.runs, key=lambda run: (run.tokens, run.parameters))
            tried = tuple(run for run in text.runs if run.parameters == longest.parameters
                          and run.tokens < 0.6 * longest.tokens)
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
        return OneText(text, [one for one, there in zip(learned, likely, strict=True) if there],
                       weights[likely] / weights[likely].sum(), self._copying,
                       self._widened * DEVIATIONS[min(len(self.texts) - 1, len(DEVIATIONS)) - 1])


class OneText:
    """The law of one text."""

    def __init__(self, text: Text, beliefs: Sequence[_Belief], weights: Array, copying: _Copying,
                 deviations: float):
        self._text, self._beliefs, self._weights = text, beliefs, weights
        self._copying, self._deviations = copying, deviations

    def forecast(self, run: Run) -> Forecast:
        """What a run is to give."""
        mean, variance = self.moments(run)
        apart = self._deviations * variance**0.5
        return Forecast(mean, max(0.0, mean - apart), mean + apart)

    def moments(self, run: Run) -> tuple[float, float]:
        """(mean, variance) of its loss, by the spread among the law's texts"""
        each = [belief.forecast(run, self._text.entropy) for belief in self._beliefs]
        means, variances = np.array(each).T
        mean = float(self._weights @ means)
        left, spread = self._copying.left(run, self._text)
        return mean + left, float(self._weights @ (variances + (means - mean) ** 2)) + spread**2


@dataclass(frozen=True)
class _Belief:
    """Of one shape: what is a text's own, -beta log c and beta, and how far all agree with it."""

    shape: Shape
    mean: Array  # (2,)
    covariance: Array  # (2, 2)
    noise: float  # variance of a loss, nats²
    log_evidence: float

    @classmethod
    def of(cls, texts: Sequence[Text], shape: Shape) -> _Belief:
        """From the law's texts."""
        fits = [_fitted(text, shape) for text in texts]
        squares = sum(off for _, off in fits)
        free = sum(len(text.runs) - 2 for text in texts)
        noise = max(squares / max(1, free), NOISE**2)
        among = np.stack([own for own, _ in fits])
        return cls(shape, among.mean(axis=0), np.cov(among.T) * (1 + 1 / len(texts)) + VAGUE,
                   noise, -0.5 * (squares / noise + free * float(np.log(noise))))

    def having_seen(self, text: Text) -> _Belief:
        """After some runs on a text. Source: Bishop 2006, sections 3.3 and 3.5."""
        if not text.runs:
            return self
        x, z, slope = _line(text, self.shape)
        spread = x @ self.covariance @ x.T + np.diag(self.noise / slope**2)
        gain = np.linalg.solve(spread, x @ self.covariance).T
        apart = z - x @ self.mean
        log_volume = float(np.linalg.slogdet(spread)[1]) + 2 * float(np.log(slope).sum())
        evidence = -0.5 * (float(apart @ np.linalg.solve(spread, apart)) + log_volume)
        return replace(self, mean=self.mean + gain @ apart,
                       covariance=self.covariance - gain @ x @ self.covariance,
                       log_evidence=self.log_evidence + evidence)

    def forecast(self, run: Run, entropy: float) -> tuple[float, float]:
        """(mean, variance) of a run's loss beside a copier"""
        x, = _terms([run], self.shape)
        left = 1 / (1 + float(np.exp(x @ self.mean)))  # to learn
        span = entropy * (1 - self.shape.floor)
        slope = span * left * (1 - left)
        return (entropy * (self.shape.floor + by_heart(run, self.shape.price)) + span * left,
                float(x @ self.covariance @ x) * slope**2 + self.noise)


@dataclass(frozen=True)
class _Copying:
    """What is left to copy: the logarithm of its share of the entropy, after so many tokens.

    doublings: (K,) of a million tokens, rising; logs: (K,) medians of runs. spread: of a text's.
    """

    doublings: Array
    logs: Array
    spread: float

    @classmethod
    def of(cls, texts: Sequence[Text]) -> _Copying:
        """From all of their runs."""
        places = np.array([np.log2(run.tokens / 1e6) for text in texts for run in text.runs])
        logs = np.array([_log_left(run, text) for text in texts for run in text.runs])
        near = np.round(places)
        doublings = np.unique(near)
        found = cls(doublings, np.array([np.median(logs[near == each]) for each in doublings]), 0.0)
        apart = logs - np.interp(places, doublings, found.logs)
        return replace(found, spread=float(apart.std()))

    def left(self, run: Run, text: Text) -> tuple[float, float]:
        """(nats per token, standard deviation): as in other texts, and as far as the text's longest
        run still says otherwise."""
        share = self._usual(run)
        if text.runs:
            longest = max(text.runs, key=lambda other: other.tokens)
            held = HELD ** max(0.0, float(np.log2(run.tokens / longest.tokens)))
            share += held * (_log_left(longest, text) - self._usual(longest))
        nats = text.entropy * float(np.exp(share))
        return nats, nats * self.spread

    def _usual(self, run: Run) -> float:
        return float(np.interp(np.log2(run.tokens / 1e6), self.doublings, self.logs))


def _log_left(run: Run, text: Text) -> float:
    """The logarithm of the share of a text's entropy that a copier adds to a run's model."""
    return float(np.log(max(LEAST, (run.loss - run.beside) / text.entropy)))


@functools.lru_cache(maxsize=2**14)
def _fitted(text: Text, shape: Shape) -> tuple[Array, float]:
    """(what is a text's own, how far off its runs are in squares) by least squares: once for all
    laws that learn from the text."""
    x, z, slope = _line(text, shape)
    own = np.linalg.lstsq(x * slope[:, None], z * slope, rcond=None)[0]
    return own, float(np.sum(((z - x @ own) * slope) ** 2))


def _line(text: Text, shape: Shape) -> tuple[Array, Array, Array]:
    """(terms, z, dL/dz): (runs, 2), (runs,), (runs,). z is linear in the terms."""
    shares = np.array([run.beside / text.entropy - by_heart(run, shape.price) for run in text.runs])
    shares = np.clip(shares, shape.floor + 1e-3, 1 - 1e-3)
    z = np.log((1 - shares) / (shares - shape.floor))
    slope = text.entropy * (shares - shape.floor) * (1 - shares) / (1 - shape.floor)
    return _terms(text.runs, shape), z, slope


def _terms(runs: Sequence[Run], shape: Shape) -> Array:
    """1 and log d': (runs, 2)"""
    n = np.array([run.parameters for run in runs]) / 1e6
    d = np.array([run.tokens for run in runs]) / 1e6
    return np.stack([np.ones_like(n), -np.log(1 / d + shape.ratio * n**-shape.gamma)], axis=1)


def by_heart(run: Run, price: float) -> float:
    """The share of the entropy that is lost by learning by heart what is read more than once."""
    again = max(0.0, run.tokens / run.epoch - 1)
    return -float(np.expm1(-price * (again * run.parameters / run.epoch) ** 1.5))
