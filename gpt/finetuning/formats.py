"""Task data in the shapes that people have it in, as conversations or preferences.

Which format a record has follows from the names of its fields. What cannot be learned from as it
stands is refused, by file, line and field; what means nothing here (ids, sources) is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gpt.chat import Message
from gpt.errors import UserError
from gpt.files import nests
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.fields import MOST_NAMES, Fields, kind_of, shown
from gpt.finetuning.task_file import read_rows
from gpt.finetuning.tool_calls import calls_in, with_functions
from gpt.finetuning.transcripts import transcript
from gpt.finetuning.turns import in_order, turns_of, unlearned

# The fields that make a format, in the order in which they decide: data sets often carry a second
# form of the same thing along (`text` beside `instruction`, `messages` beside `chosen`).
_SHAPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("preference", ("chosen", "rejected")),
    ("preference", ("chosen_response", "rejected_response")),  # UltraFeedback, binarized by Argilla
    ("messages", ("messages",)),
    ("messages", ("conversation",)),  # LMSYS-Chat, WildChat, Capybara
    ("sharegpt", ("conversations",)),
    ("completion", ("prompt", "completion")),
    ("completion", ("prompt", "response")),
    ("alpaca", ("instruction", "output")),
    ("alpaca", ("instruction", "response")),
    ("completion", ("question", "answer")),
    ("completion", ("question", "response")),
    ("completion", ("query", "answers", "tools")),  # xLAM: the answers are calls
    ("completion", ("query", "response")),  # MetaMathQA
    ("completion", ("problem", "solution")),  # MATH
    ("completion", ("input", "output")),
    ("classification", ("text", "label")),
    ("text", ("text",)),
)
_BESIDE = {"instruction": ("input", "context"), "question": ("context",)}  # read after it
# Fields that a wrong letter would make another thing of, since nobody would miss them.
_OPTIONAL = {"text": ("label",), "alpaca": ("input", "history", "system")}


@dataclass(frozen=True)
class TaskData:
    """What a file holds: examples or, in the format preference, preferences."""

    format: str
    examples: list[Example] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)


def detect(record: dict[str, Any]) -> str | None:
    """The format of a record, by the names of its fields."""
    return next((name for name, needed in _SHAPES if record.keys() >= set(needed)), None)


def read_task(path: Path, format: str = "auto") -> TaskData:
    """All examples of a file, or all its preferences, in order.

    format: one of FORMATS; auto: that of the first record, which all others must have.
    Raises UserError naming file, line and field of the first record that cannot be learned from.
    """
    if format not in (*FORMATS, "auto"):
        raise UserError(f"there is no format {format} of task data; choose auto, "
                        f"{', '.join(FORMATS)}")
    task, first = TaskData(format), ""
    for where, value in read_rows(path):
        record = Fields(value, where)
        if task.format == "auto":
            task, first = TaskData(_format_of(record)), where
        _refuse_other_format(record, task.format, first)
        record.refuse_near(_OPTIONAL.get(task.format, ("system",)))
        if task.format != "text":
            record.refuse_what_is_not_text()
        learned = replace(_READERS[task.format](record), options=_options(record))
        if isinstance(learned, Preference):
            task.preferences.append(learned)
        else:
            task.examples.append(learned)
    return task


def _options(record: Fields) -> dict[str, Any]:
    """What a record says to the chat template of a model."""
    given = record.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise record.wrong("chat_template_kwargs", f"is {kind_of(given)}; it must be an object")
    if nests(given, 20):
        raise record.wrong("chat_template_kwargs", "is nested too deeply; a few levels will do")
    thinking = {name: record.get(name) for name in ("enable_thinking",)
                if record.get(name) is not None}
    return {name: value for name, value in {**(given or {}), **thinking}.items()
            if value is not None}


def _format_of(record: Fields) -> str:
    if (found := detect(record.values)) is not None:
        return found
    words = {word for _, needed in _SHAPES for word in needed}
    for name in islice(record.values, MOST_NAMES):
        if name not in words and (near := difflib.get_close_matches(name, words, 1, 0.75)):
            raise UserError(f"{record.where}: no format has these fields: {record}; is "
                            f"{shown(name)} meant to be {near[0]}? Rename it")
    usual = {name: " and ".join(needed) for name, needed in reversed(_SHAPES)}
    raise UserError(f"{record.where}: no format has these fields: {record}; rename them to "
                    f"{', or '.join(usual[name] for name in FORMATS)}")


def _refuse_other_format(record: Fields, format: str, first: str) -> None:
    """first: where the format was seen; "" if it was asked for, and other fields may be there."""
    found = detect(record.values)
    has_both = not first and record.values.keys() >= set(_shape(record, format))
    if found in (None, format) or has_both:
        return
    other = f"and {first} those of {format}" if first else f"and {format} is expected"
    raise UserError(f"{record.where} has the fields of {found} ({record}), {other}; put each "
                    "format into a file of its own, or mend the record")


def _shape(record: Fields, format: str) -> tuple[str, ...]:
    """The fields by which a record has a format, or those of which most are there."""
    return max((needed for name, needed in _SHAPES if name == format),
               key=lambda needed: sum(name in record.values for name in needed))


def _read_text(record: Fields) -> Example:
    return Example((Message("assistant", record.full_text("text"), True),), record.where)


def _read_completion(record: Fields, format: str = "completion") -> Example:
    asked, answered = _shape(record, format)[:2]
    if isinstance(record.get("label"), bool):  # some of these answers are bad ones
        raise record.wrong("label", f"judges {answered}, and all answers would be learned; keep "
                                    "the good ones, and take label out")
    history = _history(record) if format == "alpaca" else []
    question = _question(record, asked)
    between, answer = _answer(record, answered)
    if between:
        raise record.wrong(answered, f"is more than one message; move the others to {asked}")
    if not answer.learned:
        raise record.wrong(answered, "has weight 0, so nothing is learned; take the record out")
    turns = _with_system(record, [*history, *question, answer])
    if not question and len(turns) > 1:
        raise record.wrong(asked, "is empty, after a system message or a history; write what the "
                                  "user says")
    return Example(turns, record.where)


def _read_alpaca(record: Fields) -> Example:
    return _read_completion(record, "alpaca")


def _read_classification(record: Fields) -> Example:
    text, label = record.full_text("text"), record.get("label")
    if isinstance(label, float):
        raise record.wrong("label", "is a fraction; it must be text, a whole number, true or false")
    named = str(label).lower() if isinstance(label, int) else record.full_text("label").strip()
    turns = [Message("user", text), Message("assistant", named, True)]
    return Example(_with_system(record, turns), record.where, named)


def _read_messages(record: Fields, format: str = "messages") -> Example:
    (name,) = _shape(record, format)
    turns = in_order(turns_of(record, name), f"{record.where}: {name}", ("assistant",),
                     greeted=format == "sharegpt")
    if not any(turn.learned for turn in turns):
        raise record.wrong(name, "has no answer to learn, all have weight 0; take the record out")
    return Example(_with_system(record, turns), record.where)


def _read_sharegpt(record: Fields) -> Example:
    return _read_messages(record, "sharegpt")


def _read_preference(record: Fields) -> Preference:
    """A prompt with two answers, or two conversations that differ in the last answer alone."""
    asked = next((name for name in ("prompt", "instruction", "question", "input", "conversations")
                  if record.get(name) is not None), "prompt")
    question = [] if record.get(asked) is None else _question(record, asked)
    good, bad = _shape(record, "preference")
    before, chosen = _answer(record, good, holds_all=not question)
    also_before, rejected = _answer(record, bad, holds_all=not question)
    if before != also_before:
        raise record.wrong(bad, f"answers another conversation than {good}; they may differ "
                                "in the last message alone")
    if before and any(turn not in before for turn in question):
        raise record.wrong(asked, f"is not in the conversation that {good} answers; take one of "
                                  "them out")
    if not before and not question:
        raise (record.wrong(asked, "is empty; write what the user says")
               if asked in record.values else record.missing(asked))
    if replace(chosen, learned=rejected.learned) == rejected:
        raise record.wrong(bad, f"is the same as {good}; take the record out")
    *prompt, _, _ = _with_system(record, [*(before or question), chosen, rejected])
    chosen, rejected = (replace(answer, learned=True, source=f"{record.where}: {name}")
                        for answer, name in ((chosen, good), (rejected, bad)))
    return Preference(tuple(prompt), chosen, rejected, record.where)


_READERS: dict[str, Callable[[Fields], Example | Preference]] = {
    "text": _read_text, "completion": _read_completion, "alpaca": _read_alpaca,
    "messages": _read_messages, "sharegpt": _read_sharegpt,
    "classification": _read_classification, "preference": _read_preference}
FORMATS = tuple(_READERS)


def _question(record: Fields, name: str) -> list[Message]:
    """What the user says, or a conversation that ends with it; nothing if that is empty."""
    if isinstance(record.get(name), list):
        return unlearned(in_order(turns_of(record, name), f"{record.where}: {name}",
                                  ("user", "tool")))
    beside = [record.optional_text(other) for other in _BESIDE.get(name, ())]
    text = "\n\n".join(part for part in (record.text(name), *beside) if part)
    return [Message("user", text)] if text else []


def _answer(record: Fields, name: str, holds_all: bool = False) -> tuple[list[Message], Message]:
    """An answer, and the conversation before it where the field holds that as well.

    holds_all: a text may be the transcript of one.
    """
    if name == "answers":
        return [], Message("assistant", "", True, calls=calls_in(record, name), source=record.where)
    if isinstance(record.get(name), list | dict):
        turns = turns_of(record, name)
    else:
        turns = transcript(record, name) if holds_all else []
        if not turns:
            return [], Message("assistant", record.full_text(name), True)
    if len(turns) != 1 or turns[0].role != "assistant":
        turns = in_order(turns, f"{record.where}: {name}", ("assistant",))
    return unlearned(turns[:-1]), turns[-1]


def _history(record: Fields) -> list[Message]:
    """Earlier rounds; their answers are learned as well."""
    rounds = record.get("history") or []
    is_sound = isinstance(rounds, list) and all(
        isinstance(pair, list) and len(pair) == 2
        and all(isinstance(text, str) and text.strip() for text in pair) for pair in rounds)
    if not is_sound:
        raise record.wrong("history", "must be a list of pairs: what the user said, and the "
                                      "answer, neither of them empty")
    return [turn for asked, answered in rounds
            for turn in (Message("user", asked), Message("assistant", answered, True))]


def _with_system(record: Fields, turns: list[Message]) -> tuple[Message, ...]:
    """The turns after the record's system message, if it has one; without one that is empty.

    The system message also says which functions may be called.
    """
    name = "system" if record.get("system") else "system_prompt"
    given = record.optional_text(name)
    if turns[0].role == "system" and not turns[0].content.strip() and not turns[0].functions:
        turns = turns[1:]
    if given.strip():
        if turns[0].role == "system":
            raise record.wrong(name, "is given, and so is a first message of that role; keep one")
        turns = [Message("system", given), *turns]
    return tuple(with_functions(record, turns))
