"""A text as it grows, and what answers of all endpoints have in common."""

from __future__ import annotations

import codecs
import math
import time
import uuid
from collections.abc import Iterable
from typing import Any

from gpt.generation import Generation, Piece
from gpt.tokenizer import Tokenizer

FINISHED = {"stop": "stop", "length": "length", "context": "length", None: None}
LOWEST = -9999.0  # for a logarithm of zero, which JSON cannot say


class Characters:
    """What each token adds to a text; what is a part of a character, nothing."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, token: int) -> str:
        """The characters that it completes."""
        if token not in self._tokenizer.text_ids:
            return ""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))


class Choice:
    """One text of an answer, as far as it has come.

    made: its tokens, but for a stop token. before: those of the prompt, where these are scored.
    """

    def __init__(self, index: int, tokenizer: Tokenizer):
        self.index, self.tokenizer, self.text = index, tokenizer, ""
        self.made: list[Generation] = []
        self.before: tuple[Generation, ...] = ()
        self.end: str | None = None
        self.offset = 0  # characters before its next token
        self._characters = Characters(tokenizer)

    def add(self, piece: Piece, counts: bool) -> list[Generation]:
        """What came; returns its token, unless that says only that the text ends. counts: whether
        it is wanted, or the prompt's scores alone."""
        self.before, self.end = self.before + piece.new.before, piece.end
        if not counts:
            self.end = "length"
            return []
        self.text += piece.text
        new = [] if piece.new.token in self.tokenizer.stop_tokens else [piece.new]
        self.made += new
        return new

    @property
    def likelihood(self) -> float:
        """Mean log-probability of its tokens."""
        return math.fsum(new.logprob for new in self.made) / max(1, len(self.made))

    def pass_by(self, token: int) -> int:
        """Go on by a token; returns how many characters stand before it."""
        before = self.offset
        self.offset += len(self._characters.of(token))
        return before


def finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LOWEST)


def told_tokens(made: Iterable[Generation], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities as chats and responses have them."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.decode_bytes([token]) if token in tokenizer.text_ids else b""
        return {"token": tokenizer.token_text(token), "logprob": finite(logprob),
                "bytes": list(data)}

    return [told(new.token, new.logprob)
            | {"top_logprobs": [told(*each) for each in new.likeliest]} for new in made]


def frame(kind: str, name: str, model: str) -> dict[str, Any]:
    """What every object of an answer begins with."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()),
            "model": model, "system_fingerprint": None}
