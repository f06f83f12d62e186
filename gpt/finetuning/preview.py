"""Examples as the model will read them, and what it learns of each: to look at before training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpt.finetuning.lengths import Lengths
from gpt.finetuning.rows import Row, Rows
from gpt.finetuning.task_rows import TaskRows
from gpt.tokenizer import Tokenizer

_COLOURS = {"learned": "\033[32m", "read": "\033[2m", "control": "\033[35m"}
_MARKS = {"learned": ("⟦", "⟧"), "read": ("", ""), "control": ("", "")}
_RESET = "\033[0m"


def preview(task: TaskRows, count: int, colour: bool) -> str:
    """The first `count` training rows, coloured or marked, then lengths and what is left out."""
    how = ("green: learned; dim: read; magenta: control tokens" if colour
           else "⟦learned⟧; the rest is read; control tokens by their names")
    lines = [how]
    for row in task.train.rows.rows[:count]:
        lines += [f"----- {row.example.where}: {len(row.tokens)} tokens, "
                  f"{int(row.learned[1:].sum())} learned", _shown(task, row, colour)]
    for pair in task.train.pairs[:count]:
        lines += [f"----- {pair.rejected.example.where}: the rejected answer",
                  _shown(task, pair.rejected, colour)]
    return "\n".join([*lines, "-----", *_statistics(task.train.rows, task.lengths)])


def _shown(task: TaskRows, row: Row, colour: bool) -> str:
    """A row's text, in stretches of one kind each."""
    tokenizer = task.chat.tokenizer
    names = {i: name for name, i in tokenizer.specials.items()}
    parts: list[tuple[str, list[int]]] = []
    for token, learned in zip(row.tokens.tolist(), row.learned.tolist(), strict=True):
        kind = "learned" if learned else "control" if token in names else "read"
        if not parts or parts[-1][0] != kind:
            parts.append((kind, []))
        parts[-1][1].append(token)
    return "".join(_in_colour(kind, _text(tokenizer, tokens, names), colour)
                   for kind, tokens in parts)


def _text(tokenizer: Tokenizer, tokens: list[int], names: dict[int, str]) -> str:
    """What they spell; characters that would command a terminal as escapes."""
    text = b"".join(names[i].encode() if i in names else tokenizer.decode_bytes([i])
                    for i in tokens).decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _in_colour(kind: str, text: str, colour: bool) -> str:
    before, after = (_COLOURS[kind], _RESET) if colour else _MARKS[kind]
    return f"{before}{text}{after}"


def _statistics(rows: Rows, lengths: Lengths) -> Iterator[str]:
    """Lengths, and what happened to rows that are too long."""
    tokens = np.array([len(row.tokens) for row in rows.rows])
    quarters = np.percentile(tokens, [0, 50, 90, 100]).astype(int)
    yield ("tokens per row: {} at least, {} in the middle, {} in nine of ten, {} at most, of "
           "{}").format(*quarters, lengths.limit)
    answers = np.array([int(row.learned[1:].sum()) for row in rows.rows])
    yield (f"learned per row: {int(answers.mean())} on average, {answers.min()} to "
           f"{answers.max()}")
    for row in rows.dropped[:5]:
        yield (f"left out: {row.example.where} has {len(row.tokens)} tokens, more than "
               f"{lengths.row + 1}")
    if len(rows.dropped) > 5:
        yield f"and {len(rows.dropped) - 5} more left out"
    if rows.cut:
        yield f"cut: {rows.cut} lost their beginning to fit into the context"
