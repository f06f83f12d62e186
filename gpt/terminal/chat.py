"""A conversation with a model, turn by turn."""

from __future__ import annotations

import contextlib
import sys

from gpt.chat import FORMATS, Chat, Message, choose_chat, saved_format
from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Request
from gpt.language_model import LanguageModel
from gpt.terminal.show import Sample, closing_line, generate, write

COMMANDS = "/clear begins anew, /undo takes the last turn back, /quit or Ctrl-D ends"
SHARE_FOR_ANSWERS = 4  # of the context, at least one part in so many


class Conversation:
    """What was said so far, in the model's chat format."""

    def __init__(self, lm: LanguageModel, config: SamplingConfig, system: str | None):
        chat = choose_chat("auto", True, lm.tokenizer)
        self._chat, self._config = chat, config
        self._lm = lm.with_tokenizer(self._chat.tokenizer)
        self.notice = None
        if isinstance(chat, Chat) and chat.format != saved_format(lm.tokenizer):
            self.notice = ("this model was not trained to converse: turns are written as "
                           f"{chat.name}")
            if chat.format == FORMATS["turns"]:  # it may not know how to end one
                self._config = config.model_copy(update={
                    "stop": [*config.stop, "\n" + chat.format.user.before.strip()]})
        self._system = [Message("system", system)] if system else []
        self.turns: list[Message] = []

    def prompt(self, text: str) -> tuple[Request, int]:
        """(what to answer, turns left out because the context is too short).

        Raises UserError if the new message alone is too long.
        """
        block_size = self._lm.block_size
        room = block_size - min(self._config.max_new_tokens, block_size // SHARE_FOR_ANSWERS)
        turns = [*self.turns, Message("user", text)]
        for first in range(0, len(turns), 2):
            tokens = self._chat.prompt([*self._system, *turns[first:]])
            if len(tokens) <= room:
                prefix = len(self._chat.prompt([*self._system, turns[first]]))
                return self._lm.request(tokens, self._config, prefix), first
        raise UserError(f"the message has {len(tokens)} tokens with what surrounds it; the context "
                        f"of {block_size} has room for {room}, and an answer")

    def answer(self, text: str) -> Sample:
        """Say something; print the answer as it comes. Ctrl-C ends the answer, not the talk."""
        request, left_out = self.prompt(text)
        if left_out:
            print(f"(the first {left_out} messages do not fit into the context any more)",
                  file=sys.stderr)
        sample = Sample(request)
        alone = self._lm.machine.ranks.size == 1  # others would not know where this one stopped
        with contextlib.suppress(*[KeyboardInterrupt] * alone):
            for _, piece in generate(self._lm, [sample]):
                write(piece)
        self.turns += [Message("user", text), Message("assistant", sample.text)]
        return sample

    def undo(self) -> None:
        """Take the last message and its answer back."""
        del self.turns[-2:]


def converse(lm: LanguageModel, config: SamplingConfig, system: str | None) -> None:
    """Read messages from standard input, a line each, until it ends."""
    with contextlib.suppress(ImportError):  # where it is there, lines can be edited and recalled
        import readline  # noqa: F401
    talk = Conversation(lm, config, system)
    asking = sys.stdin.isatty()
    for line in filter(None, (talk.notice, COMMANDS if asking else None)):
        print(f"({line})", file=sys.stderr)
    while (text := lm.machine.ranks.first(lambda: _line(asking), patiently=True)) is not None:
        if text == "/quit":
            return
        if text == "/clear":
            talk.turns.clear()
        elif text == "/undo":
            talk.undo()
        elif text:
            try:
                sample = talk.answer(text)
            except UserError as error:
                print(error, file=sys.stderr)
                continue
            write("\n")
            print(closing_line([sample]), file=sys.stderr)


def _line(asking: bool) -> str | None:
    """The next one, None at the end."""
    try:
        return input("> " if asking else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
