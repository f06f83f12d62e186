"""What scored tokens say: the loss and its interval, where it is high, whether chances are true."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gpt.evaluation.intervals import Interval, Units, interval
from gpt.evaluation.material import Material
from gpt.evaluation.scored import Scored
from gpt.shards import sampled_counts

BINS = 10  # of confidence, equally wide


@dataclass(frozen=True)
class Group:
    """Tokens that have something in common.

    bits_per_byte: None where they are no text of their own, as all tokens in some place.
    """

    name: str
    tokens: int
    loss: float
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence: how often the likeliest token came."""

    confidence: float
    accuracy: float
    tokens: int


@dataclass(frozen=True)
class Figures:
    """loss: nats per token. The intervals are those of `units`; None where there is one alone.

    calibration_error: the mean distance of accuracy from confidence, by tokens.
    """

    loss: float
    bits_per_byte: float
    tokens: int
    text_bytes: int
    units: str
    unit_count: int
    loss_interval: Interval | None
    bits_interval: Interval | None
    accuracy: float
    calibration_error: float
    calibration: list[Bin]
    by_source: list[Group] = field(default_factory=list)
    by_position: list[Group] = field(default_factory=list)
    by_frequency: list[Group] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.loss)


def figures_of(scored: Scored, material: Material) -> Figures:
    """All that one pass over a text says."""
    text_bytes = material.tokenizer.byte_lengths()[scored.ids]
    documents = material.documents
    units = Units.of_text(documents, text_bytes)
    nats, sizes = units.sums(scored.losses), units.sums(text_bytes)
    bits = nats / math.log(2)
    bins = calibration(scored)
    total = int(text_bytes.sum())
    return Figures(
        loss=float(nats.sum()) / len(scored), bits_per_byte=float(bits.sum()) / max(1, total),
        tokens=len(scored), text_bytes=total, units=units.what, unit_count=units.count,
        loss_interval=interval(nats, units.sums(np.ones(len(scored)))),
        bits_interval=interval(bits, sizes) if total else None,
        accuracy=float(scored.hits.mean()), calibration=bins,
        calibration_error=sum(abs(each.confidence - each.accuracy) * each.tokens
                              for each in bins) / len(scored),
        by_source=_by_source(scored, material, documents, text_bytes),
        by_position=_grouped(scored, *_places(scored.read)),
        by_frequency=_grouped(scored, *_frequencies(scored.ids, material)))


def calibration(scored: Scored) -> list[Bin]:
    """By confidence, in equally wide bins; empty ones are left out.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 2.
    """
    of = np.minimum((scored.confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(of, minlength=BINS)
    sure, right = (np.bincount(of, weights=each, minlength=BINS)
                   for each in (scored.confidence, scored.hits))
    return [Bin(float(sure[i] / n), float(right[i] / n), int(n))
            for i, n in enumerate(counts) if n]


def _grouped(scored: Scored, of: np.ndarray, names: list[str],
             text_bytes: np.ndarray | None = None) -> list[Group]:
    """Of tokens whose group is known, (N,) int64; groups that none belongs to are left out."""
    counts = np.bincount(of, minlength=len(names))
    nats = np.bincount(of, weights=scored.losses, minlength=len(names))
    sizes = np.bincount(of, weights=text_bytes, minlength=len(names)) if (
        text_bytes is not None) else None
    return [Group(name, int(counts[i]), float(nats[i] / counts[i]), None if sizes is None else
                  float(nats[i] / math.log(2) / max(1.0, sizes[i])))
            for i, name in enumerate(names) if counts[i]]


def _by_source(scored: Scored, material: Material, documents: np.ndarray, text_bytes: np.ndarray
               ) -> list[Group]:
    if len(material.sources) < 2:
        return []
    return _grouped(scored, material.source_of_documents[documents],
                    [name for name, _ in material.sources], text_bytes)


def _places(read: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """By how many tokens were read, in powers of two."""
    of, most = np.floor(np.log2(read)).astype(np.int64), int(read.max())
    spans = [(2**i, min(2**(i + 1) - 1, most)) for i in range(int(of.max()) + 1)]
    return of, [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in spans]


def _frequencies(ids: np.ndarray, material: Material) -> tuple[np.ndarray, list[str]]:
    """By how often a token occurs in a million: of training text where that is known, else of the
    text itself."""
    text = material.text if material.training is None else material.training
    counts = sampled_counts(text, text.vocab_size)
    often = counts[ids] / max(1, counts.sum()) * 1e6
    of = np.clip(np.floor(np.log10(np.maximum(often, 1e-9))).astype(np.int64) + 1, 0, 5)
    return of, ["less than 1", *(f"{10**i:,} to {10**(i + 1):,}" for i in range(4)),
                "10,000 and more"]
