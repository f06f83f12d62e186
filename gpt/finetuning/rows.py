"""Records as tokens, and which of them the loss counts: completions and their stop token alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt.batches import IGNORE, MicroBatch, sequence_order
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
    boundary between them is always a boundary between tokens. An empty prompt is end-of-text.
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
    prompt = tokenizer.encode(record.prompt) or [tokenizer.end_of_text]
    completion = [*tokenizer.encode(record.completion), tokenizer.end_of_text]
    return Row(prompt + completion, len(prompt))


class Rows:
    """Fine-tuning batches. Rows are padded to the longest of their micro-batch, on the right,
    where causal attention cannot see it."""

    def __init__(self, rows: Sequence[Row], batch_size: int, micro_batch_size: int, seed: int):
        self._rows, self._seed = rows, seed
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size

    @property
    def sequences_per_epoch(self) -> int:
        """Rows in the training set."""
        return len(self._rows)

    @property
    def tokens_per_sequence(self) -> float:
        """The mean length of a row."""
        return sum(len(row.tokens) - 1 for row in self._rows) / len(self._rows)

    def step(self, step: int) -> list[MicroBatch]:
        """The global batch of one step."""
        indices = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        order = sequence_order(indices, len(self._rows), self._seed)
        return list(padded_batches([self._rows[i] for i in order], self._micro_batch_size))


def padded_batches(rows: Sequence[Row], size: int) -> Iterator[MicroBatch]:
    """Rows in their order, `size` at a time."""
    for chosen in (rows[i:i + size] for i in range(0, len(rows), size)):
        width = max(len(row.tokens) for row in chosen) - 1
        inputs = np.zeros((len(chosen), width), dtype=np.int64)
        targets = np.full((len(chosen), width), IGNORE, dtype=np.int64)
        for i, row in enumerate(chosen):
            inputs[i, :len(row.tokens) - 1] = row.tokens[:-1]
            supervised = slice(row.prompt_tokens - 1, len(row.tokens) - 1)
            targets[i, supervised] = row.tokens[row.prompt_tokens:]
        tokens = sum(len(row.tokens) - 1 for row in chosen)
        yield MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), tokens)


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
