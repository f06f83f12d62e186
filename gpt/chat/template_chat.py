"""Conversations as a model's own template writes them, as token ids; what of them is learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.chat.answers import Answer, alike, answer_in
from gpt.chat.messages import Message
from gpt.chat.protection import Protection
from gpt.chat.rendering import Encoded
from gpt.chat.segments import Segments
from gpt.chat.talk import REASONING, Talk
from gpt.chat.template import ChatTemplate, Renderer, Wanted
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

TOGETHER, SHORT = 16, 100_000  # answers rendered at once, in talks of fewer characters
_SAID_ELSEWHERE = ("messages", "tools", "documents", "add_generation_prompt")


class TemplateChat:
    """A template, in the tokens of a tokenizer. All that `Chat` does with a format that is data.

    Texts of users never become control tokens: they go into the template with a mark in what they
    spell, which is taken out again between the control tokens. What is learned of an answer is
    what the template writes with it behind what it writes to ask for it, up to the control token
    that ends it.
    """

    reads_both_ways = False

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, name: str = "the template"):
        self.template, self.name = template, name
        self._renderer, self._segments = Renderer(template), Segments(tokenizer)
        self._protection = Protection(tokenizer.specials)
        self._in_rows = self._parted = self._endless = 0
        self._stop: str | None = None
        self.stop_token, self.stop = self._stops_at(tokenizer)
        self.tokenizer = tokenizer.stopping_at(self.stop_token)
        self._in_rows = self._parted = self._endless = 0

    def _stops_at(self, tokenizer: Tokenizer) -> tuple[int, str]:
        """The control token that ends an answer, and its name; end-of-text, if the template has
        none, or asks for another conversation than a question and its answer."""
        try:
            last = self.answer("A")[-1]
        except UserError:
            last = tokenizer.end_of_text
        named = {i: name for name, i in tokenizer.specials.items()}
        self._stop = named.get(last)
        stop = last if last in named else tokenizer.end_of_text
        return stop, tokenizer.token_text(stop)

    def speakable(self, messages: Sequence[Message], options: Mapping[str, Any], where: str
                  ) -> tuple[Message, ...]:
        """The messages, if the template knows all that is in them. Raises UserError."""
        for message in messages:
            for field, given, names in (
                    ("tools", message.functions, ("tools",)),
                    ("tool_calls", message.calls, ("tool_calls",)),
                    ("reasoning_content", message.reasoning, REASONING)):
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
        return UserError(f"{where}{': ' if where else ''}{field} means nothing to {self.name}, "
                         "which does not write it; choose another finetune.chat, or take it out")

    def rows(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
             ) -> list[Encoded]:
        """A conversation in tokens; several times, one for each answer that is learned, if the
        template writes earlier answers differently (without their thoughts, say)."""
        talk = Talk(messages, options or {}, self.template.text, self._protection)
        learned = [i for i, message in enumerate(talk.messages) if message.learned]
        together = TOGETHER if talk.characters < SHORT else 1
        whole, answers = "", list[Answer]()
        for first in range(0, max(1, len(learned)), together):
            part = learned[first:first + together]
            once = [] if first else [Wanted(range(len(talk.messages)))]
            texts = self._render(talk, [*_renderings(part, len(talk.messages)), *once],
                                 [talk.turn(i, marked=True) for i in part])
            whole = texts.pop() if once else whole
            answers += [self._answer(talk, i, *texts[3 * n:3 * n + 3]) for n, i in enumerate(part)]
        self._refuse_made_controls(talk, whole)
        self._refuse_lost_tools(talk)
        if all(whole.startswith(one.row[:one.span[1]]) for one in answers):
            spans = [one.span for one in answers]
            return [Encoded(*self._segments.encode(whole, talk.mark, spans), len(messages))]
        self._in_rows += len(answers) > 1
        skipped = len(messages) - len(talk.messages)
        return [Encoded(*self._segments.encode(one.row, talk.mark, [one.span]), skipped + i + 1)
                for i, one in zip(learned, answers, strict=True)]

    def _answer(self, talk: Talk, i: int, asked: str, text: str, marked: str) -> Answer:
        """Where the answer stands that is message i, in what `_renderings` want."""
        self._refuse_unwritten(talk, talk.messages[i], marked)
        behind = len(marked) - 1 - max(map(marked.rfind, talk.ends))
        behind = min(behind, alike(text[::-1], marked[::-1]))
        found = answer_in(text, asked, behind, self._segments, self._stop,
                          lambda: self._tails(talk, i, asked, text))
        self._parted += not found.opens
        self._endless += not found.ends
        return found

    def _tails(self, talk: Talk, i: int, asked: str, text: str) -> tuple[str, str]:
        """What follows the words before answer i, where it is asked for and where it is given."""
        if i == 0:
            return asked, text
        last = len(talk.messages)
        texts = self._render(talk, [Wanted([*range(i - 1), last], asks=True),
                                    Wanted([*range(i - 1), last, i])],
                             [talk.turn(i - 1, marked=True)])
        places = [max(map(one.rfind, talk.ends)) for one in texts]
        if min(places) < 0:
            raise UserError(f"{self.name} does not write what the {talk.messages[i - 1].role} says "
                            "before an answer; choose another finetune.chat")
        asks, answers = (one[place + 1:] for one, place in zip(texts, places, strict=True))
        return asks, answers

    def _refuse_unwritten(self, talk: Talk, message: Message, marked: str) -> None:
        """Raise UserError for what the template leaves out of an answer."""
        where = message.source
        if message.reasoning and talk.thoughts not in marked:
            raise self._not_written("reasoning_content", where)
        if marked.count(talk.calls) < len(message.calls):
            raise self._not_written("tool_calls", where)
        if message.content.strip() and talk.words not in marked:
            raise UserError(f"{self.name} writes nothing of an answer; choose another "
                            "finetune.chat")

    def _refuse_lost_tools(self, talk: Talk) -> None:
        """Raise UserError for functions, or for results of calls, that the template leaves out."""
        results = [i for i, message in enumerate(talk.messages) if message.role == "tool"]
        if not results and not talk.has_functions:
            return
        turns = [talk.turn(i, marked=i in results) for i in range(len(talk.messages))]
        (marked,) = self._renderer.render(turns, [Wanted(range(len(turns)))],
                                          talk.variables(marked=True))
        if talk.has_functions and talk.calls not in marked:
            raise self._not_written("tools", "")
        if marked.count(talk.words) < len(results):
            raise self._not_written("a tool's result", talk.messages[results[0]].source)

    def _refuse_made_controls(self, talk: Talk, whole: str, asks: bool = False) -> None:
        """Raise UserError where users' texts spell a control token once the template has taken
        them apart: where it writes others as soon as that is impossible."""
        if not talk.could_spell_controls:
            return
        other = talk.impossible()
        (text,) = self._renderer.render(
            other.turns, [Wanted(range(len(other.turns)), asks)], other.variables())
        if self._controls(whole) != self._controls(text):
            raise UserError(f"in {self.name}, texts of this conversation would become control "
                            "tokens, which they spell in parts; take it out")

    def _controls(self, text: str) -> list[str]:
        return [one.text for one in self._segments.of(text) if one.control]

    def _render(self, talk: Talk, wanted: Sequence[Wanted],
                others: Sequence[dict[str, Any]] = ()) -> list[str]:
        """Renderings. others: turns beside those of the conversation, behind them."""
        texts = self._renderer.render([*talk.turns, *others], wanted, talk.variables())
        if not texts[-1].strip():
            raise UserError(f"{self.name} writes nothing of this conversation; choose another "
                            "finetune.chat")
        return texts

    def prompt(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
               ) -> list[int]:
        """Token ids after which the model answers."""
        talk = Talk(messages or [Message("user", "")], options or {}, self.template.text,
                    self._protection)
        (text,) = self._render(talk, [Wanted(range(len(talk.messages)), asks=True)])
        self._refuse_made_controls(talk, text, asks=True)
        return self._segments.encode(text, talk.mark)[0]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the one that ends it."""
        (row,) = self.rows([Message("user", "A"), Message("assistant", text, learned=True)])
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
                         "token, or with another one, so the model does not learn where to stop")
        return found


def _renderings(answers: Sequence[int], last: int) -> list[Wanted]:
    """Of each answer: what asks for it; all up to it; and the same with the answer marked, as turns
    from `last` on have it."""
    found = []
    for n, i in enumerate(answers):
        found += [Wanted(range(i), asks=True), Wanted(range(i + 1)), Wanted([*range(i), last + n])]
    return found
