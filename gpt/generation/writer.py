"""Requests in, text out: the tokens of an engine as what can be shown of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation.engine import Engine, Prepared
from gpt.generation.request import End, Generation, Request
from gpt.generation.text import TextStream
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """What one token adds to a text.

    text: empty while a character is not complete, or while a stop text may have begun.
    end: why it is the last one: "stop" for a stop token or text, "length", "context", "error", of
    which there is no token; or None.
    """

    text: str
    new: Generation
    end: End | None


class Text:
    """A text that grows token by token."""

    def __init__(self, config: SamplingConfig, tokenizer: Tokenizer):
        self._config, self._tokenizer = config, tokenizer
        self._stream, self._made = TextStream(config.stop), 0

    def add(self, new: Generation) -> Piece:
        """The next token."""
        self._made += 1
        shown = ""
        if new.error is not None:
            return Piece("", new, "error")
        if new.token not in self._tokenizer.stop_tokens:
            shown = self._stream.push(self._tokenizer.decode_bytes([new.token]),
                                      may_stop=self._made > self._config.min_new_tokens)
        if self._stream.stopped:
            return Piece(shown, new, "stop")
        return Piece(shown + self._stream.finish() if new.end else shown, new, new.end)


class Writer:
    """An engine whose requests end at stop texts, too."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self._engine, self._tokenizer = engine, tokenizer
        self._texts: dict[int, Text] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return self._engine.busy

    def prepare(self, request: Request) -> Prepared:
        """What `submit` takes without further ado; from any thread. Raises UserError."""
        return self._engine.prepare(request)

    def submit(self, request: Request | Prepared) -> int:
        """Queue a request; returns the number that its pieces will come with. Raises UserError."""
        prepared = self.prepare(request) if isinstance(request, Request) else request
        number, config = self._engine.submit(prepared), prepared.request.config
        if config.max_new_tokens:
            self._texts[number] = Text(config, self._tokenizer)
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, if it has not ended already."""
        self._engine.cancel(number)
        self._texts.pop(number, None)

    def step(self) -> Iterator[tuple[int, Piece]]:
        """The next pieces of requests that have a row: (number, piece) each."""
        for number, new in self._engine.step():
            if number in self._texts:  # not after a stop text among tokens that a draft guessed
                piece = self._texts[number].add(new)
                if piece.end is not None:
                    del self._texts[number]
                    if new.end is None:
                        self._engine.cancel(number)
                yield number, piece

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Piece]]:
        """(index of the request, its next piece), until all have ended. Nothing else may be going
        on. Raises UserError, before anything is written."""
        assert not self.busy, "these indices would be mixed up with others"
        indices = {}
        for index, request in enumerate(requests):
            try:
                indices[self.submit(request)] = index
            except UserError as error:
                if len(requests) == 1:
                    raise
                raise UserError(f"text {index + 1} of {len(requests)}: {error}") from error
        while self.busy:
            for number, piece in self.step():
                if piece.new.error is not None:
                    raise piece.new.error
                yield indices[number], piece


def pieces_of(made: Iterable[Generation], config: SamplingConfig, tokenizer: Tokenizer
              ) -> Iterator[Piece]:
    """A text whose tokens are known."""
    text = Text(config, tokenizer)
    for new in made:
        piece = text.add(new)
        yield piece
        if piece.end is not None:
            return
