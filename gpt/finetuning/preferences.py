"""Learning from preferences: of two answers to a prompt, the better one is to become likelier.

Direct preference optimisation. Source: Rafailov et al. 2023 (arXiv:2305.18290), equation 7; label
smoothing: Mitchell 2023, "A note on DPO with noisy preferences".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.batches import MicroBatch, Origin
from gpt.chat import AnyChat, Message
from gpt.configuration import PreferenceConfig
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.rows import Row, encode_row, side_by_side
from gpt.machine.device import Machine
from gpt.machine.progress import progress_bar
from gpt.model import GPT
from gpt.training.objective import token_losses

SCORED_TOGETHER = 8  # pairs


@dataclass(frozen=True)
class Pair:
    """A preferred answer and another one, each behind the same prompt.

    reference: the log-probability that the model gave each before it learned, in nats.
    """

    chosen: Row
    rejected: Row
    reference: tuple[float, float] = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PairBatch(MicroBatch):
    """Row 2i is the preferred answer of pair i, row 2i + 1 the other one.

    reference: (B,) float32, the log-probability of each row's answer before learning.
    """

    together: ClassVar[int] = 2

    reference: Tensor | None = None


def encode_pairs(preferences: Sequence[Preference], chat: AnyChat,
                 block_size: int) -> tuple[list[Pair], list[Pair]]:
    """(pairs that fit into the context, pairs of which an answer does not)"""
    pairs = [Pair(encode_row(_answered(preference, preference.chosen), chat),
                  encode_row(_answered(preference, preference.rejected), chat))
             for preference in preferences]
    fits = [max(len(pair.chosen), len(pair.rejected)) <= block_size for pair in pairs]
    return ([pair for pair, fit in zip(pairs, fits, strict=True) if fit],
            [pair for pair, fit in zip(pairs, fits, strict=True) if not fit])


def _answered(preference: Preference, answer: Message) -> Example:
    return Example((*preference.prompt, answer), preference.where, options=preference.options)


class Pairs:
    """Training sequences: a pair each, padded to the longest answer of those read together."""

    def __init__(self, pairs: Sequence[Pair], marks_prompts: bool = False):
        self._pairs, self._marks_prompts = pairs, marks_prompts
        self.tokens_per_sequence = sum(map(len, pairs)) / len(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Of the longer answer of each, with its prompt, in tokens."""
        chosen = [self._pairs[number] for number in numbers]
        return np.array([max(len(pair.chosen), len(pair.rejected)) for pair in chosen])

    def read(self, numbers: np.ndarray) -> PairBatch:
        """These pairs, one under the other."""
        chosen = [self._pairs[number] for number in numbers]
        batch = side_by_side([[row] for pair in chosen for row in (pair.chosen, pair.rejected)],
                             marks_prompts=self._marks_prompts)
        reference = torch.tensor([score for pair in chosen for score in pair.reference])
        return PairBatch(**vars(batch), reference=reference)

    def origins(self, number: int) -> list[Origin]:
        """The example of each answer of a pair."""
        pair = self._pairs[number]
        return [pair.chosen.origin, pair.rejected.origin]


def answer_scores(model: GPT, batch: MicroBatch) -> Tensor:
    """The log-probability of each row's answers, in nats; (B,) float32."""
    return -token_losses(model, batch).sum(dim=1)


@torch.inference_mode()
def with_reference(pairs: Sequence[Pair], model: GPT, machine: Machine,
                   marks_prompts: bool = False) -> list[Pair]:
    """The pairs with what a model thinks of their answers before it learns."""
    model.eval()
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))  # so that little is padded
    together = [order[i:i + SCORED_TOGETHER] for i in range(0, len(order), SCORED_TOGETHER)]
    with progress_bar("reference", len(pairs), "pair") as bar:
        def scored(share: Sequence[list[int]]) -> list[list[tuple[float, float]]]:
            return [_pair_scores(model, source, numbers, machine, bar.update) for numbers in share]

        source = Pairs(pairs, marks_prompts)
        scores = machine.replicas.dealt_out(together, scored)
    found = list(pairs)
    for numbers, references in zip(together, scores, strict=True):
        for i, reference in zip(numbers, references, strict=True):
            found[i] = replace(found[i], reference=reference)
    return found


def _pair_scores(model: GPT, source: Pairs, numbers: Sequence[int], machine: Machine,
                 on_pairs: Callable[[int], object] = lambda pairs: None
                 ) -> list[tuple[float, float]]:
    """Log-probabilities of the preferred answer and the other one of each pair."""
    machine.stop.raise_if_asked()
    with machine.autocast():
        scores = answer_scores(model, source.read(np.array(numbers)).on(machine))
    on_pairs(len(numbers))
    return [(good, bad) for good, bad in scores.view(-1, 2).tolist()]


class PreferenceObjective:
    """Direct preference optimisation, averaged over pairs."""

    def __init__(self, config: PreferenceConfig):
        self._config = config
        self._figures: dict[str, Tensor] = {}

    def count(self, batch: MicroBatch) -> int:
        """Pairs."""
        return len(batch.inputs) // 2

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """−log σ(β · margin) summed over pairs; ()."""
        assert isinstance(batch, PairBatch) and batch.reference is not None
        gains = (answer_scores(model, batch) - batch.reference).view(-1, 2)
        loss, margins = preference_loss(gains[:, 0], gains[:, 1], self._config)
        for name, value in (("margin", margins), ("preference_accuracy", margins > 0)):
            total = value.detach().float().sum()
            self._figures[name] = self._figures[name] + total if name in self._figures else total
        return loss.sum()

    def take_figures(self) -> dict[str, Tensor]:
        """Margins, and pairs in which the preferred answer gained more, since the last call."""
        figures, self._figures = self._figures, {}
        return figures


def preference_loss(gain_chosen: Tensor, gain_rejected: Tensor,
                    config: PreferenceConfig) -> tuple[Tensor, Tensor]:
    """(losses, margins), (P,) each; gains: log-probability now less that of the reference, (P,).

    label_smoothing: the share of preferences that are taken to be the wrong way round.
    """
    margins = config.beta * (gain_chosen - gain_rejected)
    wrong = config.label_smoothing
    losses = -(1 - wrong) * F.logsigmoid(margins) - wrong * F.logsigmoid(-margins)
    return losses, margins


@torch.inference_mode()
def preference_figures(model: GPT, pairs: Sequence[Pair], config: PreferenceConfig,
                       machine: Machine, marks_prompts: bool = False) -> dict[str, float]:
    """Over pairs: the loss, how often the preferred answer is the likelier one (win_rate), how
    often it gained more than the other (preference_accuracy), and by how much (margin, in nats
    times beta)."""
    def scored(share: Sequence[Sequence[int]]) -> list[list[tuple[float, float]]]:
        return [_pair_scores(model, source, numbers, machine) for numbers in share]

    source = Pairs(pairs, marks_prompts)
    together = [range(i, min(i + SCORED_TOGETHER, len(pairs)))
                for i in range(0, len(pairs), SCORED_TOGETHER)]
    parts = machine.replicas.dealt_out(together, scored)
    scores = torch.tensor([each for part in parts for each in part])        # (P, 2)
    gains = scores - torch.tensor([pair.reference for pair in pairs])
    losses, margins = preference_loss(gains[:, 0], gains[:, 1], config)
    found = {"preference_loss": losses, "win_rate": scores[:, 0] > scores[:, 1],
             "preference_accuracy": margins > 0, "margin": margins}
    return {name: float(values.double().mean()) for name, values in found.items()}
