"""Conversations in a format, as text and token ids."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpt.chat.format import ChatFormat, Turn, controls_of
from gpt.chat.jinja import as_jinja
from gpt.chat.messages import Message
from gpt.chat.protection import any_of
from gpt.chat.tools import in_words, kind_of_tool, refuse_results_of_nothing, with_tools
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A stretch of a rendered conversation.

    control: it is a control token's name. answer: an assistant wrote it. learned: the loss counts
    it.
    """

    text: str
    control: bool = False
    answer: bool = False
    learned: bool = False


class Encoded(NamedTuple):
    """A conversation in tokens. learned: those that the loss counts. turns: how many messages of
    the conversation it holds."""

    ids: list[int]
    learned: list[bool]
    turns: int

    @property
    def answers(self) -> list[int]:
        """The tokens that are learned."""
        return [i for i, counts in zip(self.ids, self.learned, strict=True) if counts]


class Chat:
    """A format, in the tokens of a tokenizer. name: what the format is called.

    Raises UserError if the format needs control tokens that the tokenizer does not have.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, form: ChatFormat, tokenizer: Tokenizer, name: str = "of this model"):
        self.format, self.name, self._names = form, name, tokenizer.specials
        self.reads_both_ways = form.prefix == "bidirectional"
        names: dict[int | None, str] = {i: name for name, i in tokenizer.specials.items()}
        self._end, self._begin = names[tokenizer.end_of_text], names.get(tokenizer.begin_of_text)
        self.stop = form.stop or self._end
        if lacking := [name for name in controls_of(form) if name not in self._names]:
            raise UserError(f"the chat format needs {lacking[0]}, which is no control token of the "
                            f"model's tokenizer ({_some(self._names)})")
        self.stop_token = self._names[self.stop]
        self.tokenizer = tokenizer.stopping_at(self.stop_token)
        self._controls = re.compile(f"({any_of(self._names)})")

    def pieces(self, messages: Sequence[Message], asks: bool = False) -> list[Piece]:
        """A conversation without tools (gpt/chat/tools.py puts them in words).

        asks: and what stands before the answer that comes next.
        """
        found = [Piece(self._begin, control=True)] if self._begin is not None else []
        default = self.format.default_system
        if default is not None and not (messages and messages[0].role == "system"):
            messages = [Message("system", default), *messages]
        for message in messages:
            found += self._turn(message)
        if asks:
            found += self._around(self.format.assistant.before)
        if not found or found[0].answer:  # the start of a document
            found.insert(0, Piece(self._end, control=True))
        return list(_joined(found))

    def _turn(self, message: Message) -> Iterator[Piece]:
        assert not message.functions and not message.calls
        turn: Turn = getattr(self.format, message.role)
        yield from self._around(turn.before)
        answers = message.role == "assistant"
        if message.content:
            yield Piece(message.content, answer=answers, learned=message.learned)
        if answers:
            yield Piece(self.stop, control=True, learned=message.learned)
        yield from self._around(turn.after)

    def _around(self, text: str) -> Iterator[Piece]:
        """What a format says, with the control tokens in it."""
        for part in self._controls.split(text):
            if part:
                yield Piece(part, control=part in self._names)

    def encode(self, pieces: Iterable[Piece]) -> Iterator[tuple[list[int], bool]]:
        """Each piece's token ids, and whether they are learned."""
        encode = self.tokenizer.encode
        for piece in pieces:
            if piece.control:
                yield [self._names[piece.text]], piece.learned
            else:
                yield encode(piece.text), piece.learned
                encode = self.tokenizer.encode_behind

    def speakable(self, messages: Sequence[Message], options: Mapping[str, Any], where: str
                  ) -> tuple[Message, ...]:
        """The messages with all that concerns tools in the format's words. Raises UserError for
        what it has none for. where: what errors name."""
        for field in options:
            raise self._not_written(field, where)
        for message in messages:
            if message.reasoning:
                raise self._not_written("reasoning_content", message.source or where)
        if not (used := with_tools(messages)):
            return tuple(messages)
        if self.format.tools is None:
            raise UserError(f"{used[0].source or where}: {kind_of_tool(used[0])} cannot be written "
                            f"in the chat format {self.name}; choose finetune.chat=chatml, or a "
                            "format that has `tools`, or take such records out")
        refuse_results_of_nothing(messages, self.format.tools.call.before.strip())
        return in_words(messages, self.format)

    def _not_written(self, field: str, where: str) -> UserError:
        return UserError(f"{where}: {field} means nothing in the chat format {self.name}: it is "
                         "for templates that name it; take it out, or choose another finetune.chat")

    def rows(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
             ) -> list[Encoded]:
        """A conversation without tools in tokens."""
        row = Encoded([], [], len(messages))
        for ids, counts in self.encode(self.pieces(messages)):
            row.ids.extend(ids)
            row.learned.extend([counts] * len(ids))
        return [row]

    def prompt(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
               ) -> list[int]:
        """Token ids after which the model answers."""
        return [i for ids, _ in self.encode(self.pieces(messages, asks=True)) for i in ids]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the one that ends it."""
        return [*self.tokenizer.encode_behind(text), self.stop_token]

    def identity(self, has_tools: bool = True) -> dict[str, Any]:
        """What training rests on."""
        # Runs from before formats had words for tools go on.
        return self.format.model_dump(exclude=None if has_tools else {"tools"})

    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer as it is saved with a model that learned this format."""
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = self.jinja()
        tokenizer.chat_format = self.format.model_dump_json(
            indent=1, exclude={"tools"} if self.format.tools is None else None)
        return tokenizer

    def jinja(self) -> str:
        """The format as a Jinja template, for other tools."""
        return as_jinja(self.format, has_begin=self._begin is not None)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring texts as one, as other tools will encode them; but answers apart, as they are
    when a model writes them."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and not any((*last[1:], *piece[1:])):
            last = Piece(last.text + piece.text)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:6]
    return f"it has {', '.join(first)}{', …' if len(list(names)) > 6 else ''}"
