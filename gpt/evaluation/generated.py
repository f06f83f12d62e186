"""What a model writes: whether it repeats itself, and whether it repeats what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt.batches import TokenizedText
from gpt.configuration import SamplingConfig
from gpt.language_model import LanguageModel

if TYPE_CHECKING:
    from gpt.evaluation.material import Material

PROMPT, LENGTHS = 32, (8, 16, 32, 64)  # tokens: given, and compared
NGRAMS = (1, 2, 3, 4)
SAMPLE = 128  # tokens of a sample
SEED = 0


@dataclass(frozen=True)
class Variety:
    """Of several texts.

    distinct: by n, distinct n-grams among all of all texts. repeated: the share of a text's 4-grams
    that it has had before.
    Sources: Li et al. 2016 (arXiv:1510.03055); Welleck et al. 2019 (arXiv:1908.04319).
    """

    distinct: dict[int, float]
    repeated: float


@dataclass(frozen=True)
class Memorisation:
    """By length, the share of passages that a model goes on with exactly, token by token, after 32
    tokens of them: of what it learned from, and of what it never saw, which tells how much can
    simply be guessed.

    Source: Carlini et al. 2023 (arXiv:2202.07646), section 3.
    """

    training: dict[int, float]
    heldout: dict[int, float]
    passages: int


@dataclass(frozen=True)
class Generated:
    """samples: drawn at temperature 1. real: as many stretches of held-out text as long."""

    samples: Variety
    real: Variety | None
    memorisation: Memorisation | None


def generated(lm: LanguageModel, material: Material, count: int) -> Generated:
    """From `count` texts of each kind, or as many as a text has room for."""
    length = min(SAMPLE, lm.block_size - 1)
    config = SamplingConfig(temperature=1.0, max_new_tokens=length, seed=SEED)
    samples = _written(lm, [[material.text.end_of_text]] * count, config)
    real = passages(material.text, count, length)
    return Generated(variety(samples), variety(real) if real else None,
                     memorisation(lm, material, count))


def memorisation(lm: LanguageModel, material: Material, count: int) -> Memorisation | None:
    """None where the training text is not known, or the context or a text is too short."""
    lengths = [each for each in LENGTHS if PROMPT + each <= lm.block_size]
    if material.training is None or not lengths:
        return None
    both = [passages(text, count, PROMPT + lengths[-1])
            for text in (material.training, material.text)]
    if not all(both):
        return None
    config = SamplingConfig(temperature=0.0, max_new_tokens=lengths[-1])
    shares = []
    for of in both:
        told = _written(lm, [each[:PROMPT] for each in of], config)
        shares.append({length: float(np.mean([
            written[:length] == each[PROMPT:PROMPT + length]
            for written, each in zip(told, of, strict=True)])) for length in lengths})
    return Memorisation(shares[0], shares[1], min(map(len, both)))


def passages(text: TokenizedText, count: int, length: int) -> list[list[int]]:
    """Evenly spaced stretches of a text, each within a document."""
    starts = text.stream.document_starts
    bounds = np.append(starts, len(text))
    room = np.diff(bounds) - 1 - length  # its end-of-text aside
    fitting = np.flatnonzero(room >= 0)
    if not len(fitting):
        return []
    ends = np.cumsum(room[fitting] + 1)
    found = []
    for place in np.unique(np.arange(count) * int(ends[-1]) // count).tolist():
        number = int(np.searchsorted(ends, place, "right"))
        start = int(starts[fitting[number]]) + place - int(ends[number - 1] if number else 0)
        found.append(text.read(start, start + length).tolist())
    return found


def variety(texts: Sequence[Sequence[int]]) -> Variety:
    """Of texts as token ids."""
    distinct, repeated = {}, []
    for n in NGRAMS:
        grams = [tuple(text[i:i + n]) for text in texts for i in range(len(text) - n + 1)]
        distinct[n] = len(set(grams)) / max(1, len(grams))
    for text in texts:
        grams = [tuple(text[i:i + 4]) for i in range(len(text) - 3)]
        if grams:
            repeated.append(1 - len(set(grams)) / len(grams))
    return Variety(distinct, float(np.mean(repeated)) if repeated else 0.0)


def _written(lm: LanguageModel, prompts: Sequence[Sequence[int]], config: SamplingConfig
             ) -> list[list[int]]:
    """What follows each prompt, as token ids; each with a seed of its own."""
    requests = [lm.request(prompt, config.model_copy(update={"seed": SEED + i}))
                for i, prompt in enumerate(prompts)]
    found: list[list[int]] = [[] for _ in prompts]
    for row, piece in lm.write(requests):
        lm.machine.stop.raise_if_asked()
        found[row].append(piece.new.token)
    return found
