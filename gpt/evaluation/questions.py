"""Multiple choice in files of one's own: JSON lines of {"context", "choices", "answer"}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.evaluation.continuations import Row, common_prefix, judge
from gpt.evaluation.intervals import Interval, interval
from gpt.language_model import LanguageModel
from gpt.tokenizer import Tokenizer

BLANK = "___"  # where a choice stands, if not at the end


@dataclass(frozen=True)
class Question:
    """What stands before a choice, the choices, what stands behind them, and which is right."""

    before: str
    choices: tuple[str, ...]
    behind: str
    answer: int


@dataclass(frozen=True)
class Answered:
    """accuracy: the share of questions whose right choice has the greatest likelihood per byte.
    accuracy_in_all: the same by likelihood, which favours short choices. chance: what guessing
    gets."""

    questions: int
    accuracy: float
    accuracy_interval: Interval | None
    accuracy_in_all: float
    chance: float


def is_questions(file: Path) -> bool:
    """Whether a file holds multiple choice, by its first line."""
    try:
        with file.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "choices" in first


def read_questions(file: Path) -> list[Question]:
    """All of a file. Raises UserError naming the line, and what is wrong in it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    found = [_question(line, f"{file}, line {number}")
             for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise UserError(f"{file} is empty: there is nothing to ask")
    return found


def _question(line: str, where: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is no object with context, choices and answer")
    if lacking := {"context", "choices", "answer"} - {*record}:
        raise UserError(f"{where} has no {', '.join(sorted(lacking))}")
    context, choices = record["context"], record["choices"]
    if not isinstance(context, str) or not isinstance(choices, list) or len(choices) < 2 or not all(
            isinstance(each, str) and each.strip() for each in choices):
        raise UserError(f"{where}: context must be a text, and choices two or more of them, none "
                        "of which is empty")
    before, blank, behind = context.partition(BLANK)
    if BLANK in behind:
        raise UserError(f"{where}: context has {BLANK} more than once")
    apart = not blank and before and not before[-1].isspace()  # from choices without a blank
    return Question(before, tuple(f" {each}" if apart and not each[0].isspace() else each
                                  for each in choices), behind,
                    _answer(record["answer"], choices, where))


def _answer(said: Any, choices: list[str], where: str) -> int:
    """Which choice is right: its number, from 0, or its text."""
    if isinstance(said, str) and choices.count(said) == 1:
        return choices.index(said)
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < len(choices):
        return said
    raise UserError(f"{where}: answer must be one of the choices, or its number from 0 to "
                    f"{len(choices) - 1}")


def row_of(tokenizer: Tokenizer, before: str, whole: str) -> Row:
    """A text as tokens behind the one that begins texts, of which those are judged that are not
    the same without what follows `before`."""
    ids = tokenizer.encode_prompt(whole, begin=True)
    start = common_prefix([ids, tokenizer.encode_prompt(before, begin=True)])
    return Row(ids, max(1, min(start, len(ids) - 1)))


def ask(lm: LanguageModel, questions: Sequence[Question]) -> Answered:
    """What a model chooses."""
    rows = [[row_of(lm.tokenizer, each.before.rstrip(" "), each.before + choice + each.behind)
             for choice in each.choices] for each in questions]
    per_byte, in_all = [], []
    for each, judged in zip(questions, judge(lm, rows), strict=True):
        sizes = [len((choice + each.behind).strip().encode()) for choice in each.choices]
        logprobs = [found.logprob for found in judged]
        in_all.append(_best(logprobs) == each.answer)
        per_byte.append(_best([nats / size for nats, size in zip(logprobs, sizes, strict=True)])
                        == each.answer)
    right = np.array(per_byte, dtype=float)
    return Answered(len(questions), float(right.mean()), interval(right, np.ones(len(right))),
                    float(np.mean(in_all)),
                    float(np.mean([1 / len(each.choices) for each in questions])))


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
