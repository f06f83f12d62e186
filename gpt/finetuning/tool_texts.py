"""Task data in the words that a chat format has for tools, or one line that says it has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from gpt.chat import ChatFormat, Message, in_words
from gpt.errors import UserError
from gpt.finetuning.examples import Preference
from gpt.finetuning.formats import TaskData


def has_tools(data: TaskData) -> bool:
    """Whether functions, calls or results are anywhere in it."""
    return any(_with_tools(each.messages) for each in data.examples) or any(
        _with_tools(each.prompt) or each.chosen_calls or each.rejected_calls
        for each in data.preferences)


def spoken(data: TaskData, name: str, form: ChatFormat) -> TaskData:
    """The data with nothing but plain turns. name: of the format.

    Raises UserError if there are tools in them and the format has no words for them.
    """
    if not has_tools(data):
        return data
    return replace(
        data,
        examples=[replace(each, messages=_spoken(each.messages, each.where, name, form))
                  for each in data.examples],
        preferences=[_preference(each, name, form) for each in data.preferences])


def _preference(each: Preference, name: str, form: ChatFormat) -> Preference:
    chosen, rejected = (
        _spoken((*each.prompt, Message("assistant", answer, True, calls=calls,
                                       source=f"{each.where}: {field}")), each.where, name, form)
        for field, answer, calls in (("chosen", each.chosen, each.chosen_calls),
                                     ("rejected", each.rejected, each.rejected_calls)))
    return Preference(chosen[:-1], chosen[-1].content, rejected[-1].content, each.where)


def _spoken(messages: tuple[Message, ...], where: str, name: str,
            form: ChatFormat) -> tuple[Message, ...]:
    used = _with_tools(messages)
    if not used:
        return messages
    if form.tools is None:
        raise UserError(f"{used[0].source or where}: {_kind(used[0])} cannot be written in the "
                        f"chat format {name}; choose finetune.chat=chatml, or a format that has "
                        "`tools`, or take such records out")
    _refuse_results_of_nothing(messages, form.tools.call.before.strip())
    return in_words(messages, form)


def _refuse_results_of_nothing(messages: Sequence[Message], call: str) -> None:
    """Raise UserError where a result follows an answer that calls nothing, in its text either."""
    for before, message in pairwise(messages):
        if message.role == "tool" and before.role == "assistant" and not before.calls and (
                not call or call not in before.content):
            raise UserError(f"{message.source}: a tool's result follows an answer that calls "
                            "nothing; add the call, or take the record out")


def _with_tools(messages: Iterable[Message]) -> list[Message]:
    return [each for each in messages if each.role == "tool" or each.functions or each.calls]


def _kind(message: Message) -> str:
    return ("tools" if message.functions else
            "tool_calls" if message.calls else "a tool's result")
