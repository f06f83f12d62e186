"""A recall task for benchmarks/lstm.py: pairs of a key and a value, filler, and questions.

    a 7  c 2  d 7  f 1  . . . . . . . . . .  c _  f _  a _  d _

A row begins with pairs, all keys different; after `distance` symbols of filler each key comes once
more, in another order, and its value is to be predicted. Accuracy is that of the first question
alone, as later ones could be guessed from the answers before them. With one pair a model has one
symbol to carry, with four it must keep four and know which belongs to which. Chance is one value
in SYMBOLS, or one in four for a model that knows the values and not whose they are.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.lstm_model import IGNORED, KINDS, AdamW, Draw, Model, build, train
from benchmarks.runs import spread

SYMBOLS = 16  # keys; values; and kinds of filler
DISTANCES = (4, 16, 64, 256)  # symbols of filler
PAIRS = {1: 8.0, 4: 35.0}  # how many, and the seconds of training that they get
# Tried before: 1e-3, 2e-3 and 4e-3 for the Transformer, which needs the lowest for four pairs;
# 1e-3, 2e-3, 4e-3 and 8e-3 for the LSTM, which learns one pair soonest by the highest and comes to
# the same with four by the last three.
RATES = {"transformer": 1e-3, "lstm": 8e-3}
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 512}
TOKENS, ASKED = 2048, 256  # tokens of a training step; rows that are asked at the end


def recall_rows(count: int, pairs: int, distance: int, generator: torch.Generator
                ) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (count, 4 · pairs + distance) int64 each; only values that are asked for
    are targets."""
    keys = torch.rand(count, SYMBOLS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(SYMBOLS, (count, pairs), generator=generator) + SYMBOLS
    filler = torch.randint(SYMBOLS, (count, distance), generator=generator) + 2 * SYMBOLS
    order = torch.rand(count, pairs, generator=generator).argsort(1)
    told = torch.stack([keys, values], 2).flatten(1)  # (count, 2 · pairs)
    asked = torch.stack([keys.gather(1, order), values.gather(1, order)], 2).flatten(1)
    inputs = torch.cat([told, filler, asked], 1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, -2 * pairs::2] = asked[:, 1::2]
    return inputs, targets


def mixed_rows(seed: int, pairs: int) -> Draw:
    """Training batches: each of one distance, drawn anew, and of about TOKENS tokens."""
    def draw(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        distance = DISTANCES[int(torch.randint(len(DISTANCES), (), generator=generator))]
        return recall_rows(max(1, TOKENS // (4 * pairs + distance)), pairs, distance, generator)
    return draw


@torch.inference_mode()
def accuracy(model: Model, pairs: int, distance: int) -> float:
    """Share of first questions whose likeliest answer is right, in rows that are alike for all."""
    inputs, targets = recall_rows(ASKED, pairs, distance, torch.Generator().manual_seed(0))
    first = inputs.size(1) - 2 * pairs
    answers = model(inputs[:, :first + 1])[:, -1].argmax(-1)
    return float((answers == targets[:, first]).float().mean())


def recall(rounds: int) -> dict[str, Any]:
    """Train fresh models of each kind for each number of pairs, over all distances at once and for
    as long; ask."""
    records = []
    for pairs, kind in itertools.product(PAIRS, KINDS):
        runs = [asked(kind, pairs, seed) for seed in range(1, rounds + 1)]
        for distance, rates in zip(DISTANCES, zip(*runs, strict=True), strict=True):
            records.append({"kind": kind, "pairs": pairs, "distance": distance,
                            "accuracy": [*rates]})
            print(f"recall     {kind:12} pairs {pairs}, {distance:3} symbols back: "
                  f"{spread(rates, '.0%')}", flush=True)
    return {"unit": "share of right answers", "chance": 1 / SYMBOLS, "shape": SHAPE,
            "seconds": PAIRS, "rates": RATES, "records": records}


def asked(kind: str, pairs: int, seed: int) -> list[float]:
    """Train a model; its accuracy at each distance."""
    model = build(kind, 3 * SYMBOLS, SHAPE, seed)
    [last] = train(model, AdamW(model, RATES[kind]), mixed_rows(seed, pairs),
                   seconds=PAIRS[pairs])
    print(f"recall     {kind:12} pairs {pairs}, seed {seed}: {last.step} steps", flush=True)
    return [accuracy(model, pairs, distance) for distance in DISTANCES]
