"""Examples as tokens, and which of them the loss counts: answers and their stop tokens alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpt.batches import IGNORE, MicroBatch, Origin, pack, portions
from gpt.chat import AnyChat, Message
from gpt.errors import UserError
from gpt.finetuning.examples import Example
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """A conversation in tokens.

    tokens: (n,) int64. learned: (n,) bool, those that the loss counts. example: where it is from.
    turns: how many of the example's messages it holds; None: all.
    """

    tokens: np.ndarray
    learned: np.ndarray
    example: Example
    turns: int | None = None

    def __len__(self) -> int:
        """Inputs, and targets: the last token is no input, the first no target."""
        return len(self.tokens) - 1

    @property
    def origin(self) -> Origin:
        """Where its example is from."""
        return {"example": self.example.where}

    @property
    def answer_start(self) -> int:
        """Where the tokens of the last answer that is learned begin."""
        unlearned = np.flatnonzero(~self.learned[:-1] & self.learned[1:])
        return int(unlearned[-1]) + 1 if len(unlearned) else 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """What it holds of the example."""
        return self.example.messages[:self.turns]

    def answer(self, tokenizer: Tokenizer) -> str:
        """The text of the last answer that is learned."""
        controls = frozenset(tokenizer.specials.values())
        start = self.answer_start
        return tokenizer.decode(
            i for i, counts in zip(self.tokens[start:].tolist(), self.learned[start:].tolist(),
                                   strict=True) if counts and i not in controls)

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the first that is learned."""
        return int(self.learned.argmax())


@dataclass(frozen=True)
class Rows:
    """What became of a file's examples.

    dropped: those longer than the context. cut: how many lost their beginning to fit into it.
    """

    rows: list[Row]
    dropped: list[Row]
    cut: int

    @property
    def examples(self) -> int:
        """How many there were, before long plain texts were cut into several rows."""
        return len({id(row.example) for row in (*self.rows, *self.dropped)})

    @property
    def too_long(self) -> int:
        """How many examples were dropped, all or some of their rows, or cut."""
        return len({id(row.example) for row in self.dropped}) + self.cut

    @property
    def long_share(self) -> float:
        """The share of examples that were dropped or cut."""
        return self.too_long / max(1, self.examples)


def encode_examples(examples: Sequence[Example], chat: AnyChat, max_length: int,
                    long_rows: Literal["drop", "cut"] = "drop",
                    text_length: int | None = None) -> Rows:
    """Rows of at most max_length tokens.

    A plain text that is longer than text_length (None: max_length) becomes several rows, each going
    on where the last one ended. Of a longer conversation the beginning is cut off if long_rows says
    so; one whose last answer does not fit is dropped.
    """
    found, cut = Rows([], [], 0), 0
    for row in (row for example in examples for row in encode_rows(example, chat)):
        is_text = len(row.example.messages) == 1
        if len(row) <= (text_length or max_length if is_text else max_length):
            found.rows.append(row)
        elif is_text:
            found.rows.extend(_pieces(row, text_length or max_length))
        elif long_rows == "cut" and len(row.tokens) - row.answer_start <= max_length:
            found.rows.append(_without_beginning(row, max_length))
            cut += 1
        else:
            found.dropped.append(row)
    return Rows(found.rows, found.dropped, cut)


def encode_rows(example: Example, chat: AnyChat) -> list[Row]:
    """An example of any length; a row for each answer where the chat's template needs that."""
    try:
        rows = chat.rows(example.messages, example.options)
    except UserError as error:
        raise UserError(f"{example.where}: {error}" if example.where else str(error)) from error
    return [Row(np.array(row.ids), np.array(row.learned), example, row.turns) for row in rows]


def encode_row(example: Example, chat: AnyChat) -> Row:
    """An example with one answer to learn."""
    (row,) = encode_rows(example, chat)
    return row


def _pieces(row: Row, length: int) -> Iterator[Row]:
    """Rows of so many targets; each begins with the last token of the one before."""
    for start in range(0, len(row), length):
        part = slice(start, start + length + 1)
        yield Row(row.tokens[part], row.learned[part], row.example, row.turns)


def _without_beginning(row: Row, length: int) -> Row:
    """The last of its targets, so many."""
    kept = slice(len(row.tokens) - length - 1, None)
    return Row(row.tokens[kept], row.learned[kept], row.example, row.turns)


class PaddedRows:
    """Fine-tuning sequences, a row each. Those read together are padded to the longest of them, on
    the right, where causal attention cannot see it."""

    def __init__(self, rows: Sequence[Row], marks_prompts: bool = False):
        self._rows, self._marks_prompts = rows, marks_prompts
        self.tokens_per_sequence = sum(map(len, rows)) / len(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Of these rows, in tokens."""
        return np.array([len(self._rows[number]) for number in numbers])

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """These rows side by side."""
        return side_by_side([[self._rows[number]] for number in numbers],
                            marks_prompts=self._marks_prompts)

    def origins(self, number: int) -> list[Origin]:
        """The example of a row."""
        return [self._rows[number].origin]


class PackedRows:
    """Fine-tuning sequences that hold several rows, as many as fit into so many tokens.

    Each is read as if it stood alone: attention and positions restart with it. Best-fit packing:
    gpt/batches/packing.py.
    """

    def __init__(self, rows: Sequence[Row], length: int, marks_prompts: bool = False):
        self._rows, self._marks_prompts = rows, marks_prompts
        self._packing = pack(np.array([len(row) for row in rows]), length)
        self.tokens_per_sequence = sum(map(len, rows)) / len(self._packing)

    def __len__(self) -> int:
        return len(self._packing)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Of what these hold, in tokens."""
        return np.array([sum(len(self._rows[i]) for i in self._packing.row(number))
                         for number in numbers.tolist()])

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """These sequences side by side."""
        return side_by_side([[self._rows[i] for i in self._packing.row(number)]
                             for number in numbers.tolist()],
                            isolate=True, marks_prompts=self._marks_prompts)

    def origins(self, number: int) -> list[Origin]:
        """The examples of a sequence."""
        return [self._rows[i].origin for i in self._packing.row(number)]


def side_by_side(lines: Sequence[Sequence[Row]], isolate: bool = False,
                 marks_prompts: bool = False) -> MicroBatch:
    """Lines of one or more rows as a micro-batch, as wide as the longest line.

    isolate: rows of a line do not see each other. marks_prompts: prompts are read in both
    directions.
    """
    shape = (len(lines), max(sum(map(len, line)) for line in lines))
    inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    begins, prompts = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for i, line in enumerate(lines):
        place = 0
        for row in line:
            here = slice(place, place + len(row))
            inputs[i, here] = row.tokens[:-1]
            targets[i, here] = np.where(row.learned[1:], row.tokens[1:], IGNORE)
            begins[i, place] = True
            prompts[i, place:place + row.prompt_tokens] = True
            place += len(row)
        begins[i, place:place + 1] = True  # padding is a segment of its own
    return MicroBatch.of(inputs, targets, begins if isolate else None,
                         prompts if marks_prompts else None,
                         tokens=sum(len(row) for line in lines for row in line))


def padded_batches(rows: Sequence[Row], tokens: int,
                   marks_prompts: bool = False) -> list[MicroBatch]:
    """Rows sorted by their length, so that little is padded; as many together as fit into so many
    tokens."""
    rows = sorted(rows, key=len)
    return [side_by_side([[row] for row in rows[part]], marks_prompts=marks_prompts)
            for part in portions(list(map(len, rows)), len(rows), tokens)]


def first_rows(rows: Sequence[Row], max_tokens: int | None) -> list[Row]:
    """Rows to validate on, in their order: at most max_tokens of them, and at least one row."""
    chosen: list[Row] = []
    total = 0
    for row in rows:
        total += len(row)
        if max_tokens is not None and chosen and total > max_tokens:
            break
        chosen.append(row)
    return chosen


def refuse_useless(rows: Rows, name: str, limit: str, max_long_share: float) -> None:
    """Raise UserError if nothing is left to learn from, or too little of what was given.

    limit: how long they may be, in words.
    """
    if not rows.rows:
        shortest = min(map(len, rows.dropped))
        raise UserError(f"none of the {rows.examples} examples in {name} fits into {limit} (the "
                        f"shortest has {shortest}); shorten them, or allow longer ones")
    if rows.long_share > max_long_share:
        raise UserError(
            f"{rows.too_long} of the {rows.examples} examples in {name} are longer "
            f"than {limit} ({rows.long_share:.0%}; finetune.max_long_share allows "
            f"{max_long_share:.0%}); shorten them, or allow more or longer ones")
    for row in rows.rows:
        if not row.learned[1:].any():
            raise UserError(f"{row.example.where}: nothing of it is learned; it has no answer")
