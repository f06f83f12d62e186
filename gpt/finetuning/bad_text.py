"""Examples with characters that the base model's tokenizer has no token for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

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
        problem = _problem(example.messages, tokenizer)
        bad += problem is not None
        if problem is None or _stays(example.where, problem, policy):
            kept.examples.append(_mended_example(example, tokenizer))
    for pair in data.preferences:
        problem = _problem([*pair.prompt, pair.chosen, pair.rejected], tokenizer)
        bad += problem is not None
        if problem is None or _stays(pair.where, problem, policy):
            kept.preferences.append(_mended_preference(pair, tokenizer))
    return Written(kept, bad)


def _problem(messages: Sequence[Message], tokenizer: Tokenizer) -> str | None:
    texts = [text for message in messages for text in (
        message.content, message.reasoning, *(each.definition for each in message.functions),
        *(part for call in message.calls for part in (call.name, call.arguments)))]
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
    *prompt, chosen, rejected = _mended((*pair.prompt, pair.chosen, pair.rejected), tokenizer)
    return replace(pair, prompt=tuple(prompt), chosen=chosen, rejected=rejected)


def _mended(messages: tuple[Message, ...], tokenizer: Tokenizer) -> tuple[Message, ...]:
    mend = tokenizer.writable
    return tuple(replace(
        message, content=mend(message.content), reasoning=mend(message.reasoning),
        functions=tuple(each._replace(definition=mend(each.definition))
                        for each in message.functions),
        calls=tuple(replace(call, name=mend(call.name), arguments=mend(call.arguments))
                    for call in message.calls)) for message in messages)
