"""Records as tokens, and which of them the loss counts: completions and their stop token alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt.batches import IGNORE, MicroBatch
from gpt.errors import UserError
from gpt.finetuning.records import Record
from gpt.holdout import held_out_names
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """One record: prompt, completion, stop token. The first `prompt_tokens` are not supervised."""

    tokens: list[int]
    prompt_tokens: int


def encode_records(records: Sequence[Record], tokenizer: Tokenizer,
                   block_size: int) -> tuple[list[Row], int]:
    """Rows that fit into the context, and how many did not and were left out.

    Prompt and completion are encoded apart, as they will be when the model is sampled: the
    boundary between them is always a boundary between tokens. An empty prompt is end-of-text,
    unless the tokenizer puts a token of its own before every text.
    Raises UserError if no row fits.
    """
    rows = [_encode(record, tokenizer) for record in records]
    fitting = [row for row in rows if len(row.tokens) <= block_size + 1]
    if not fitting:
        shortest = min(len(row.tokens) for row in rows)
        raise UserError(f"none of the {len(rows)} records fits into the model's context of "
                        f"{block_size} tokens (the shortest has {shortest}); shorten them, or "
                        "start from a model with a longer block_size")
    return fitting, len(rows) - len(fitting)


def _encode(record: Record, tokenizer: Tokenizer) -> Row:
    prompt = tokenizer.encode_prompt(record.prompt)
    completion = [*tokenizer.encode(record.completion), tokenizer.end_of_text]
    return Row(prompt + completion, len(prompt))


class Rows:
    """Fine-tuning sequences. Those read together are padded to the longest of them, on the right,
    where causal attention cannot see it."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens_per_sequence(self) -> float:
        """The mean length of a row."""
        return sum(len(row.tokens) - 1 for row in self._rows) / len(self._rows)

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """These rows side by side."""
        return side_by_side([self._rows[number] for number in numbers])


def padded_batches(rows: Sequence[Row], size: int) -> Iterator[MicroBatch]:
    """Rows in their order, `size` at a time."""
    for first in range(0, len(rows), size):
        yield side_by_side(rows[first:first + size])


def side_by_side(rows: Sequence[Row]) -> MicroBatch:
    """Rows as one micro-batch, as wide as the longest of them."""
    width = max(len(row.tokens) for row in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORE, dtype=np.int64)
    for i, row in enumerate(rows):
        inputs[i, :len(row.tokens) - 1] = row.tokens[:-1]
        supervised = slice(row.prompt_tokens - 1, len(row.tokens) - 1)
        targets[i, supervised] = row.tokens[row.prompt_tokens:]
    tokens = sum(len(row.tokens) - 1 for row in rows)
    return MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), tokens)


def first_rows(rows: Sequence[Row], max_tokens: int | None) -> list[Row]:
    """Rows to validate on, at most max_tokens of them, sorted so that little is padded."""
    chosen: list[Row] = []
    total = 0
    for row in rows:
        total += len(row.tokens) - 1
        if max_tokens is not None and chosen and total > max_tokens:
            break
        chosen.append(row)
    return sorted(chosen, key=lambda row: len(row.tokens))


def hold_out(records: Sequence[Record], fraction: float,
             seed: int) -> tuple[list[Record], list[Record]]:
    """(training, validation): by a hash of each prompt, so equal prompts stay together."""
    held_out = held_out_names([record.prompt for record in records], fraction, seed)
    return ([record for record in records if record.prompt not in held_out],
            [record for record in records if record.prompt in held_out])
