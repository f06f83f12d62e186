"""Functions, calls and what these give back as text, so that only plain turns are left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from gpt.chat.format import ChatFormat, ToolTexts, Turn
from gpt.chat.messages import Message
from gpt.errors import UserError


def in_words(messages: Sequence[Message], form: ChatFormat) -> tuple[Message, ...]:
    """The messages with all that concerns tools in the words of a format that has some for it.

    Definitions follow the system message, calls what the assistant says, each on lines of its own.
    What calls give back is said in the user's turn, in one where several follow each other.
    """
    assert form.tools is not None
    found: list[Message] = []
    for message in messages:
        if message.functions:
            system = message.content or form.default_system or ""
            message = _text("system", [system, _functions(message, form.tools)], "\n\n", message)
        elif message.calls:
            calls = [_around(form.tools.call, call_text(call.name, call.arguments))
                     for call in message.calls]
            message = _text("assistant", [message.content, *calls], "\n", message)
        elif message.role == "tool":
            before = [found.pop().content] if found and found[-1].role == "tool" else []
            message = replace(message, content="\n".join([*before, _result(message, form.tools)]))
        found.append(message)
    return tuple(replace(message, role="user") if message.role == "tool" else message
                 for message in found)


def with_tools(messages: Iterable[Message]) -> list[Message]:
    """Those that concern tools."""
    return [each for each in messages if each.role == "tool" or each.functions or each.calls]


def refuse_results_of_nothing(messages: Sequence[Message], call: str) -> None:
    """Raise UserError where a result follows an answer that calls nothing, in its text either.

    call: what stands before a call in text.
    """
    for before, message in pairwise(messages):
        if message.role == "tool" and before.role == "assistant" and not before.calls and (
                not call or call not in before.content):
            raise UserError(f"{message.source}: a tool's result follows an answer that calls "
                            "nothing; add the call, or take the record out")


def kind_of_tool(message: Message) -> str:
    """What of tools a message has, as the field is called."""
    return ("tools" if message.functions else
            "tool_calls" if message.calls else "a tool's result")


def call_text(name: str, arguments: str) -> str:
    """A call as JSON; its arguments as they are written."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'


def _text(role: str, parts: list[str], between: str, message: Message) -> Message:
    return Message(role, between.join(filter(None, parts)), message.learned, source=message.source)


def _functions(message: Message, texts: ToolTexts) -> str:
    return _around(texts.functions,
                   "\n".join(function.definition for function in message.functions))


def _result(message: Message, texts: ToolTexts) -> str:
    """What a call gave back; as it is where it is written in these words already."""
    before, after = texts.result.before.strip(), texts.result.after.strip()
    text = message.content.strip()
    if before and after and text.startswith(before) and text.endswith(after):
        return text
    return _around(texts.result, message.content)


def _around(turn: Turn, text: str) -> str:
    return turn.before + text + turn.after
