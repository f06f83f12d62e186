"""Task data in the words of its chat format or template, or one line that says it has none."""

from __future__ import annotations

from dataclasses import replace

from gpt.chat import AnyChat, with_tools
from gpt.finetuning.examples import Preference
from gpt.finetuning.formats import TaskData


def has_tools(data: TaskData) -> bool:
    """Whether functions, calls or results are anywhere in it."""
    return any(with_tools(each.messages) for each in data.examples) or any(
        with_tools([*each.prompt, each.chosen, each.rejected]) for each in data.preferences)


def spoken(data: TaskData, chat: AnyChat) -> TaskData:
    """The data as `chat` can write it. Raises UserError where it has no words for what is there."""
    return replace(
        data,
        examples=[replace(each, messages=chat.speakable(each.messages, each.options, each.where))
                  for each in data.examples],
        preferences=[_preference(each, chat) for each in data.preferences])


def _preference(each: Preference, chat: AnyChat) -> Preference:
    chosen, rejected = (chat.speakable((*each.prompt, answer), each.options, each.where)
                        for answer in (each.chosen, each.rejected))
    return replace(each, prompt=chosen[:-1], chosen=chosen[-1], rejected=rejected[-1])
