"""Conversations as a model's own template writes them, as token ids; what of them is learned."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.chat.messages import Message
from gpt.chat.protection import Protection
from gpt.chat.rendering import Encoded
from gpt.chat.segments import Segments, Span
from gpt.chat.template import ChatTemplate, Renderer
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

_ASKS_FOR_NONE = re.compile(r"\bcontent\b['\"\]]*\s+is\s+none")  # of an answer that only calls
_SAID_ELSEWHERE = ("messages", "tools", "documents", "add_generation_prompt")
_REASONING = ("reasoning_content", "thinking")  # two names of one


@dataclass(frozen=True)
class _Answer:
    """Where an answer that is learned stands. turns: messages up to it. text: these, rendered.
    span: its characters there. opens: whether the text begins as what asks for the answer does."""

    turns: int
    text: str
    span: Span
    opens: bool


class TemplateChat:
    """A template, in the tokens of a tokenizer. All that `Chat` does with a format that is data.

    Texts of users never become control tokens: they go into the template with a mark in what they
    spell, which is taken out again between the control tokens. What is learned of an answer is
    what the template writes with it behind what it writes to ask for it, up to the last control
    token.
    """

    reads_both_ways = False
    _in_rows = _parted = _endless = 0

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, name: str = "the template"):
        self.template, self.name = template, name
        self._renderer, self._segments = Renderer(template), Segments(tokenizer)
        self._protection = Protection(tokenizer.specials)
        self.stop_token, self.stop = self._stops_at(tokenizer)
        self.tokenizer = tokenizer.stopping_at(self.stop_token)
        self._in_rows = self._parted = self._endless = 0

    def _stops_at(self, tokenizer: Tokenizer) -> tuple[int, str]:
        """The control token that ends an answer, and its name; end-of-text, if the template asks
        for another conversation than a question and its answer."""
        try:
            last = self.answer("A")[-1]
        except UserError:
            last = tokenizer.end_of_text
        stop = last if last in tokenizer.specials.values() else tokenizer.end_of_text
        return stop, tokenizer.token_text(stop)

    def speakable(self, messages: Sequence[Message], options: Mapping[str, Any], where: str
                  ) -> tuple[Message, ...]:
        """The messages, if the template knows all that is in them. Raises UserError."""
        for message in messages:
            for field, given, names in (
                    ("tools", message.functions, ("tools",)),
                    ("tool_calls", message.calls, ("tool_calls",)),
                    ("reasoning_content", message.reasoning, _REASONING)):
                if given and not self.template.knows(*names):
                    raise self._not_written(field, message.source or where)
        for option in options:
            if option in _SAID_ELSEWHERE:
                raise UserError(f"{where}: {option} is no option of a template: the conversation "
                                "itself says it; take it out")
            if not self.template.knows(option):
                raise self._not_written(option, where)
        return tuple(messages)

    def _not_written(self, field: str, where: str) -> UserError:
        return UserError(f"{where}: {field} means nothing to {self.name}, which does not name it; "
                         "choose another finetune.chat, or take it out")

    def rows(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
             ) -> list[Encoded]:
        """A conversation in tokens; several times, one for each answer that is learned, if the
        template writes earlier answers differently (without their thoughts, say)."""
        mark, turns, whole, answers = self._rendered(messages, options or {})
        ends = len(messages) - len(turns)
        if all(whole.startswith(answer.text) for answer in answers):
            spans = [answer.span for answer in answers]
            return [Encoded(*self._segments.encode(whole, mark, spans), len(messages))]
        self._in_rows += 1
        return [Encoded(*self._segments.encode(answer.text, mark, [answer.span]),
                        answer.turns + ends) for answer in answers]

    def _rendered(self, messages: Sequence[Message], options: Mapping[str, Any]
                  ) -> tuple[str, list[dict[str, Any]], str, list[_Answer]]:
        """(mark, the turns, all of them rendered, the answers that are learned)"""
        mark, tools, turns, options = self._variables(messages, options)
        skipped = len(messages) - len(turns)
        learned = [i - skipped for i, message in enumerate(messages) if message.learned]
        wanted = [(turns, False)]
        for i in learned:
            wanted += [(turns[:i], True), (turns[:i + 1], False)]
        whole, *texts = self._render(wanted, tools, options)
        answers = [self._answer(i + 1, asked, text)
                   for i, asked, text in zip(learned, texts[::2], texts[1::2], strict=True)]
        return mark, turns, whole, answers

    def _answer(self, turns: int, asked: str, text: str) -> _Answer:
        """From where the rendering goes on behind what asks for the answer."""
        opens = text.startswith(asked)
        start = len(asked) if opens else self._parting(asked, text)
        stops = [segment.start + len(segment.text) for segment in self._segments.of(text)
                 if segment.control and segment.start >= start]
        self._parted += not opens
        self._endless += not stops
        return _Answer(turns, text, (start, stops[-1] if stops else len(text)), opens)

    def _parting(self, asked: str, text: str) -> int:
        """Where both are alike up to, at the beginning of a line or behind a control token."""
        same = next((i for i, (a, b) in enumerate(zip(asked, text, strict=False)) if a != b),
                    min(len(asked), len(text)))
        places = [segment.start + len(segment.text) for segment in self._segments.of(text)
                  if segment.control] + [text.rfind("\n", 0, same) + 1]
        return max(place for place in places if place <= same)

    def _variables(self, messages: Sequence[Message], options: Mapping[str, Any]
                   ) -> tuple[str, list[Any] | None, list[dict[str, Any]], Mapping[str, Any]]:
        """(mark, functions, turns, options), as the template is given them."""
        functions = [json.loads(each.definition) for message in messages
                     for each in message.functions]
        turns = [self._turn(message) for message in messages
                 if message.content or not message.functions]
        mark = self._protection.mark_for([turns, functions, options], self.template.text)
        return (mark, self._protection.protected(functions, mark) or None,
                self._protection.protected(turns, mark),
                self._protection.protected(dict(options), mark))

    def _turn(self, message: Message) -> dict[str, Any]:
        given = dict.fromkeys(_REASONING, message.reasoning) if message.reasoning else {}
        turn: dict[str, Any] = {"role": message.role, "content": message.content, **given}
        if message.name:
            turn["name"] = message.name
        if message.call_id:
            turn["tool_call_id"] = message.call_id
        if message.calls:
            turn["tool_calls"] = [
                {**({"id": call.id} if call.id else {}), "type": "function", "function": {
                    "name": call.name,
                    "arguments": call.arguments if call.is_text else json.loads(call.arguments)}}
                for call in message.calls]
            if not message.content and _ASKS_FOR_NONE.search(self.template.text):
                turn["content"] = None
        return turn

    def _render(self, wanted: Sequence[tuple[list[dict[str, Any]], bool]],
                tools: list[Any] | None, options: Mapping[str, Any]) -> list[str]:
        """Turns, each with or without what asks for the next answer."""
        texts = self._renderer.render([
            {"messages": turns, "add_generation_prompt": asks, "tools": tools, "documents": None,
             **options} for turns, asks in wanted])
        if not texts[0].strip():
            raise UserError(f"{self.name} writes nothing of this conversation; choose another "
                            "finetune.chat")
        return texts

    def prompt(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
               ) -> list[int]:
        """Token ids after which the model answers."""
        mark, tools, turns, options = self._variables(messages or [Message("user", "")],
                                                      options or {})
        (text,) = self._render([(turns, True)], tools, options)
        return self._segments.encode(text, mark)[0]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the one that ends it."""
        (row,) = self.rows([Message("user", "A"), Message("assistant", text, learned=True)])
        if not row.answers:
            raise UserError(f"{self.name} writes nothing of an answer; choose another "
                            "finetune.chat")
        return row.answers

    def identity(self, has_tools: bool = True) -> dict[str, Any]:
        """What training rests on."""
        return {"template": self.template.digest,
                **({"date": self.template.now} if self.template.tells_the_time else {})}

    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer as it is saved with a model that learned by this template."""
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template, tokenizer.chat_format = self.template.text, None
        return tokenizer

    @property
    def notes(self) -> list[str]:
        """What should be known of the rows that were made."""
        found = []
        if self._in_rows:
            found.append(f"{self._in_rows:,} conversations are a row for each answer: the template "
                         "writes earlier answers differently (without their thoughts, say)")
        if self._parted:
            found.append(f"{self._parted:,} answers do not begin as the template asks for them (by "
                         "opening a thought, say): what is learned begins where both part")
        if self._endless:
            found.append(f"warning: the template ends {self._endless:,} answers with no control "
                         "token, so the model does not learn where to stop")
        return found
