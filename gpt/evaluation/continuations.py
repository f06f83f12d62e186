"""How likely texts are behind others: what multiple-choice tasks are judged by.

Shape letters: B rows, T tokens of a row, C n_embd, V vocabulary, n tokens that are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.evaluation.scored import PIECE
from gpt.language_model import LanguageModel
from gpt.model import GPT

BATCH_TOKENS = 8192  # read at once
SHARED = 64  # tokens that rows of a question begin with, from which on they are read once


class Row(NamedTuple):
    """Token ids, of which those from `start` on, 1 or more, are judged."""

    ids: list[int]
    start: int


class Judged(NamedTuple):
    """logprob: of the judged tokens together, in nats. greedy: each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


def judge(lm: LanguageModel, questions: Sequence[Sequence[Row]]) -> list[list[Judged]]:
    """Every row of every question. Rows that are longer than the context lose their beginning.

    Replicas of the model judge some questions each. Raises Interrupted after a signal that the
    machine listens to.
    """
    return lm.machine.replicas.dealt_out(list(questions), lambda some: _judge_all(lm, some))


def _judge_all(lm: LanguageModel, questions: Sequence[Sequence[Row]]) -> list[list[Judged]]:
    rows = [[_cut(row, lm.block_size) for row in question] for question in questions]
    found: list[list[Judged | None]] = [[None] * len(question) for question in questions]
    apart = [number for number, question in enumerate(rows)
             if len(question) > 1 and _alike(question) >= SHARED]
    for number in apart:
        found[number] = [*_judge_together(lm, rows[number])]
    others = [(number, i) for number in sorted({*range(len(rows))} - {*apart})
              for i in range(len(rows[number]))]
    others.sort(key=lambda place: len(rows[place[0]][place[1]].ids))
    for places in _batches(others, [len(rows[number][i].ids) for number, i in others]):
        for (number, i), one in zip(places, _judge_batch(
                lm, [rows[number][i] for number, i in places]), strict=True):
            found[number][i] = one
    return [[one for one in question if one is not None] for question in found]


def _cut(row: Row, block_size: int) -> Row:
    """What of a row is read: the last token is none that anything is predicted from."""
    over = max(0, len(row.ids) - block_size - 1)
    return Row(row.ids[over:], max(1, row.start - over))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all begin with."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def _alike(question: Sequence[Row]) -> int:
    """How many tokens are read in all rows, and judged in none."""
    return min(common_prefix([row.ids for row in question]), *(row.start - 1 for row in question))


def _batches(places: list[tuple[int, int]], lengths: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Neighbours that are read at once: rows of rising length, padded to the last one."""
    batch: list[tuple[int, int]] = []
    for place, length in zip(places, lengths, strict=True):
        if batch and (len(batch) + 1) * length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.inference_mode()
def _judge_batch(lm: LanguageModel, rows: Sequence[Row]) -> list[Judged]:
    lm.machine.stop.raise_if_asked()
    inputs = _padded([row.ids[:-1] for row in rows]).to(lm.machine.device)
    with lm.machine.autocast():
        x = lm.model.hidden(inputs)                                    # (B, T, C)
        return _judged(lm.model, x, [row.start - 1 for row in rows],
                       [row.ids[row.start:] for row in rows])


@torch.inference_mode()
def _judge_together(lm: LanguageModel, rows: Sequence[Row]) -> list[Judged]:
    """Rows that begin alike: what they share is read once."""
    lm.machine.stop.raise_if_asked()
    device, shared = lm.machine.device, _alike(rows)
    tails = [row.ids[shared:-1] for row in rows]
    cache = lm.model.new_cache(len(rows), shared + max(map(len, tails)), device, lm.machine.dtype)
    with lm.machine.autocast():
        lm.model.hidden(torch.tensor([rows[0].ids[:shared]], device=device), cache.rows(0, 1))
        for row in range(1, len(rows)):
            cache.copy_row(0, row)
        x = lm.model.hidden(_padded(tails).to(device), cache)
        return _judged(lm.model, x, [row.start - 1 - shared for row in rows],
                       [row.ids[row.start:] for row in rows])


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Side by side, (B, T) int64: what stands behind a row's end is read by nothing of it."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, :len(row)] = torch.tensor(row)
    return padded


def _judged(model: GPT, x: Tensor, starts: Sequence[int], targets: Sequence[Sequence[int]]
            ) -> list[Judged]:
    """Of rows, (B, T, C), in which the first target is predicted at `starts`."""
    read = torch.cat([row[start:start + len(ids)] for row, start, ids
                      in zip(x, starts, targets, strict=True)])        # (n, C)
    wanted = torch.tensor([i for ids in targets for i in ids], device=x.device)
    logprobs, hits = [], []
    for part, ids in zip(read.split(PIECE), wanted.split(PIECE), strict=True):
        scores = model.logits(part).float().log_softmax(-1)            # (PIECE, V)
        logprobs.append(scores.gather(1, ids.unsqueeze(1)).squeeze(1))
        hits.append(scores.argmax(-1) == ids)
    lengths = [len(ids) for ids in targets]
    return [Judged(float(each.double().sum()), len(each), bool(right.all())) for each, right
            in zip(torch.cat(logprobs).cpu().split(lengths), torch.cat(hits).cpu().split(lengths),
                   strict=True)]
