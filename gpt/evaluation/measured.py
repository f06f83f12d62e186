"""A model measured on a text, and two of them compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpt.batches import EvaluationWindows
from gpt.evaluation.figures import Figures, figures_of
from gpt.evaluation.generated import Generated, generated
from gpt.evaluation.intervals import Interval, Units, interval
from gpt.evaluation.material import Material
from gpt.evaluation.scored import Scored, score_tokens
from gpt.language_model import LanguageModel

BATCH_TOKENS = 8192  # scored at once
LONGEST_WINDOW = 8192  # imported models may read far more than fits into memory


@dataclass(frozen=True)
class Subject:
    """A model that is measured: its name, its weights' hash, and whether documents are read each
    as if it stood alone."""

    name: str
    weights: str
    isolate: bool = False


@dataclass(frozen=True)
class Measurement:
    """What is found: of which model, on which text, in which number format."""

    subject: Subject
    data: str
    data_sha256: str
    dtype: str
    figures: Figures
    generated: Generated | None


@dataclass(frozen=True)
class Difference:
    """By how much a second model's figures are greater than a first one's, on the same text.

    loss: None where they have other tokens. better: the share of units of which the second knows
    more.
    """

    first: str
    second: str
    bits_per_byte: float
    bits_interval: Interval | None
    loss: float | None
    loss_interval: Interval | None
    better: float
    units: str
    unit_count: int


def window_length(lm: LanguageModel) -> int:
    """How many tokens are scored side by side."""
    return min(lm.block_size, LONGEST_WINDOW)


def score(lm: LanguageModel, material: Material, isolate: bool = False) -> Scored:
    """Every token of a text once, in windows."""
    length = window_length(lm)
    windows = EvaluationWindows(material.text, length, BATCH_TOKENS // length, isolate=isolate)
    return score_tokens(lm.model, windows, lm.machine)


def measure(lm: LanguageModel, subject: Subject, material: Material, samples: int = 0
            ) -> tuple[Measurement, Scored]:
    """The figures of a model on a text in its own tokens, and the tokens that they come from.

    samples: texts of each kind that are written; 0: none.
    """
    scored = score(lm, material, subject.isolate)
    made = generated(lm, material, samples) if samples else None
    dtype = str(lm.machine.dtype).removeprefix("torch.")
    return Measurement(subject, material.text.name, material.sha256, dtype,
                       figures_of(scored, material), made), scored


def difference(first: tuple[Subject, Material, Scored], second: tuple[Subject, Material, Scored]
               ) -> Difference:
    """Of two models on the same documents, in the tokens of each. Bytes are counted as the first
    one's tokenizer writes them."""
    sums, units = [], []
    for _, material, scored in (first, second):
        text_bytes = material.tokenizer.byte_lengths()[scored.ids]
        units.append(Units.of_text(material.documents, text_bytes))
        sums.append((units[-1].sums(scored.losses), units[-1].sums(text_bytes),
                     units[-1].sums(np.ones(len(scored)))))
    count = min(each.count for each in units)
    (ours, sizes, tokens), (theirs, *_) = ([_cut(each, count) for each in parts] for parts in sums)
    nats = theirs - ours
    alike = first[1].tokenizer.fingerprint == second[1].tokenizer.fingerprint
    return Difference(
        first[0].name, second[0].name, float(nats.sum() / math.log(2) / max(1.0, sizes.sum())),
        interval(nats / math.log(2), sizes), float(nats.sum() / tokens.sum()) if alike else None,
        interval(nats, tokens) if alike else None, float((nats < 0).mean()), units[0].what, count)


def _cut(sums: np.ndarray, count: int) -> np.ndarray:
    """So many units: what lies behind them, if rounding has made one more, counts with the last."""
    return np.append(sums[:count - 1], sums[count - 1:].sum())
