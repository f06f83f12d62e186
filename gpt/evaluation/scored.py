"""What a model thought of every token of a text: from this all figures of an evaluation are made.

Shape letters: N tokens of a text, B rows, T tokens of a row, C n_embd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gpt.batches import IGNORE, MicroBatch, SizedBatches
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.model.visibility import positions_within

PIECE = 256  # tokens whose scores of the whole vocabulary stand in memory


@dataclass(frozen=True)
class Scored:
    """The tokens of a text in its order, (N,) each.

    ids: int64. losses: float32, in nats. read: int64, from how many tokens each was predicted.
    confidence: float32, the probability of the likeliest token. hits: bool, whether that came.
    """

    ids: np.ndarray
    losses: np.ndarray
    read: np.ndarray
    confidence: np.ndarray
    hits: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: list[Scored]) -> Scored:
        """One behind the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts])
                     for field in fields(cls)))


def score_tokens(model: GPT, batches: SizedBatches, machine: Machine) -> Scored:
    """Every supervised target once, in the order of the batches and of their rows.

    Raises Interrupted after a signal that the machine listens to.
    """
    was_training = model.training
    model.eval()
    shares = machine.summed.together(lambda: [
        (number, _score(model, batch.on(machine), machine))
        for number, batch in dealt(batches, machine)])
    model.train(was_training)
    parts = {number: part for share in shares for number, part in share if number is not None}
    return Scored.joined([parts[number] for number in sorted(parts)])


@torch.inference_mode()
def _score(model: GPT, batch: MicroBatch, machine: Machine) -> Scored:
    """Of one batch on the machine's device."""
    targets = batch.targets.flatten()
    told: list[tuple[Tensor, Tensor, Tensor]] = []
    with machine.autocast():
        x = model.hidden(batch.inputs, None, batch.segments, batch.prompts).flatten(0, 1)
        for part, ids in zip(x.split(PIECE), targets.split(PIECE), strict=True):
            scores = model.logits(part).float()                        # (PIECE, V)
            total, (best, likeliest) = scores.logsumexp(-1), scores.max(-1)
            chosen = scores.gather(1, ids.clamp(min=0).unsqueeze(1)).squeeze(1)
            told.append((total - chosen, (best - total).exp(), likeliest == ids))
    losses, confidence, hits = (torch.cat(each).cpu() for each in zip(*told, strict=True))
    T = batch.inputs.size(1)
    places = (positions_within(batch.segments) if batch.segments is not None
              else torch.arange(T).expand_as(batch.inputs))
    counts = (targets != IGNORE).cpu()
    return Scored(*(each[counts].numpy() for each in (
        targets.cpu(), losses, places.flatten().cpu() + 1, confidence, hits)))


def dealt(batches: SizedBatches, machine: Machine,
          on_batch: Callable[[int], object] = lambda batches: None
          ) -> Iterator[tuple[int | None, MicroBatch]]:
    """The batches that this process scores, with their numbers.

    All processes score as many, since they may need each other for it; what does not count is one
    of theirs once more, without a number.
    """
    ranks, last = machine.data.size, len(batches) - 1
    for first in range(0, len(batches), ranks):
        machine.stop.raise_if_asked()
        number = first + machine.data.rank
        yield (number if number <= last else None), batches[min(number, last)]
        on_batch(min(ranks, len(batches) - first))
