"""A conversation as the variables of a template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from gpt.chat.messages import Message
from gpt.chat.protection import Protection, texts_in, unused

REASONING = ("reasoning_content", "thinking")  # two names of one, as transformers has it
_ASKS_FOR_NONE = re.compile(r"\bcontent\b['\"\]]*\s+is\s+none")  # of an answer that only calls


class Talk:
    """A conversation, and what its template is told besides.

    messages: without a system message that only says which functions there are. mark: what keeps
    users' texts from spelling control tokens. words, thoughts, calls: characters that stand for
    nothing, which turns can have behind these, to be found again.
    """

    def __init__(self, messages: Sequence[Message], options: Mapping[str, Any], template: str,
                 protection: Protection):
        self._functions = [json.loads(each.definition) for message in messages
                           for each in message.functions]
        self.messages = [message for message in messages
                         if message.content or not message.functions]
        self._options, self._protection = dict(options), protection
        self._asks_for_none = bool(_ASKS_FOR_NONE.search(template))
        self.mark, self.words, self.thoughts, self.calls = unused(self._said(), template, 4)
        self._change: Callable[[Any], Any] = partial(protection.protected, mark=self.mark)

    def _said(self) -> list[Any]:
        """All that users say, in any form."""
        return [self._functions, self._options, *(
            [message.content, message.reasoning, message.name, message.call_id,
             *([call.name, call.arguments, call.id] for call in message.calls)]
            for message in self.messages)]

    @property
    def characters(self) -> int:
        """How long it is."""
        return sum(map(len, texts_in(self._said())))

    @property
    def has_functions(self) -> bool:
        """Whether functions are defined in it."""
        return bool(self._functions)

    @property
    def could_spell_controls(self) -> bool:
        """Whether a control token's name could be put together from parts of what users say."""
        return self._protection.could_come_about(self._said())

    def impossible(self) -> Talk:
        """The same, where no such name can come about."""
        other = object.__new__(Talk)
        other.__dict__.update({name: value for name, value in self.__dict__.items()
                               if name != "turns"})
        other._change = partial(self._protection.impossible, mark=self.mark)
        return other

    @property
    def ends(self) -> tuple[str, str, str]:
        """What stands behind each kind of thing that a turn can say."""
        return self.words, self.thoughts, self.calls

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """All messages as the template is given them."""
        return [self.turn(i) for i in range(len(self.messages))]

    def turn(self, i: int, marked: bool = False) -> dict[str, Any]:
        """A message as the template is given it. marked: with characters to be found again behind
        all that it says."""
        message = self.messages[i]
        words, thoughts, calls = self.ends if marked else ("", "", "")
        rest: dict[str, Any] = {"content": _behind(message.content, words)}
        if message.calls and not message.content:
            rest["content"] = None if self._asks_for_none else ""
        if message.reasoning:
            rest |= dict.fromkeys(REASONING, _behind(message.reasoning, thoughts))
        if message.name:
            rest["name"] = message.name
        if message.call_id:
            rest["tool_call_id"] = message.call_id
        if message.calls:
            rest["tool_calls"] = [
                {**({"id": call.id} if call.id else {}), "type": "function", "function": {
                    "name": call.name,
                    "arguments": _behind(call.arguments, calls) if call.is_text else
                    {**json.loads(call.arguments), **({calls: calls} if calls else {})}}}
                for call in message.calls]
        changed: dict[str, Any] = self._change(rest)
        return {"role": message.role, **changed}

    def variables(self, marked: bool = False) -> dict[str, Any]:
        """What the template is told beside the turns. marked: functions have other names."""
        functions = [_renamed(one, self.calls) for one in self._functions] if marked else (
            self._functions)
        return {"tools": self._change(functions) or None, "documents": None,
                **self._change(self._options)}


def _behind(text: str, char: str) -> str:
    """The text with a character behind all that is no blank."""
    said = text.rstrip()
    return said + char + text[len(said):] if char else text


def _renamed(function: Any, char: str) -> Any:
    """A definition whose function has another name."""
    inner = function.get("function") if isinstance(function, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("name"), str):
        return {**function, "function": {**inner, "name": inner["name"] + char}}
    return function
