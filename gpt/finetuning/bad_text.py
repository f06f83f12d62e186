"""Examples with characters that the base model's tokenizer has no token for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from gpt.chat import Message
from gpt.errors import UserError
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.formats import TaskData
from gpt.tokenizer import Tokenizer

Policy = Literal["error", "replace", "skip"]
DONE = {"error": "", "replace": "mended", "skip": "left out"}


class Written(NamedTuple):
    """What of a file's data the tokenizer can write. bad: how many were mended or left out."""

    data: TaskData
    bad: int = 0


def written(data: TaskData, tokenizer: Tokenizer, policy: Policy) -> Written:
    """The data by the policy. Raises UserError under the policy error, naming the first example."""
    if tokenizer.unwritable is None:
        return Written(data)
    kept, bad = TaskData(data.format), 0
    for example in data.examples:
        problem = _problem([*(message.content for message in example.messages)], tokenizer)
        bad += problem is not None
        if problem is None or _stays(example.where, problem, policy):
            kept.examples.append(_mended_example(example, tokenizer))
    for pair in data.preferences:
        problem = _problem([*(message.content for message in pair.prompt), pair.chosen,
                            pair.rejected], tokenizer)
        bad += problem is not None
        if problem is None or _stays(pair.where, problem, policy):
            kept.preferences.append(_mended_preference(pair, tokenizer))
    return Written(kept, bad)


def _problem(texts: list[str], tokenizer: Tokenizer) -> str | None:
    return next((found[1] for text in texts if (found := tokenizer.unwritable_in(text))), None)


def _stays(where: str, problem: str, policy: Policy) -> bool:
    if policy == "error":
        raise UserError(f"{where}: {problem}; take it out, or set finetune.on_bad_text=replace or "
                        "finetune.on_bad_text=skip")
    return policy == "replace"


def _mended_example(example: Example, tokenizer: Tokenizer) -> Example:
    label = example.label and tokenizer.writable(example.label)
    return replace(example, messages=_mended(example.messages, tokenizer), label=label)


def _mended_preference(pair: Preference, tokenizer: Tokenizer) -> Preference:
    changes: dict[str, Any] = {name: tokenizer.writable(getattr(pair, name))
                               for name in ("chosen", "rejected")}
    return replace(pair, prompt=_mended(pair.prompt, tokenizer), **changes)


def _mended(messages: tuple[Message, ...], tokenizer: Tokenizer) -> tuple[Message, ...]:
    return tuple(replace(message, content=tokenizer.writable(message.content))
                 for message in messages)
