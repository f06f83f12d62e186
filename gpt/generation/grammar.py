"""Text that has to be JSON of a schema, or what a regular expression matches, by llguidance.

It knows which tokens can begin or continue such a text, whatever bytes a token holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer


class TextGrammar:
    """What one text may go on with; a stop token ends it."""

    def __init__(self, matcher: Any, vocab_size: int, stop_tokens: Sequence[int]):
        self._matcher, self._vocab_size, self._stop_tokens = matcher, vocab_size, stop_tokens

    def allowed(self) -> torch.Tensor:
        """(vocab_size,) bool"""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:self._vocab_size]
        return torch.from_numpy(allowed.astype(bool))

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed."""
        if token not in self._stop_tokens:
            self._matcher.consume_token(token)

    def check(self, forced: Sequence[int]) -> None:
        """Raises UserError if the text cannot begin with these tokens."""
        fitting = self._matcher.validate_tokens(list(forced))
        if fitting < len(forced):
            raise UserError(f"json_schema or regex does not allow token {forced[fitting]}, which "
                            "forced_tokens asks for")


def grammars(tokenizer: Tokenizer) -> Callable[[SamplingConfig], TextGrammar | None]:
    """A function from a request's settings to its grammar; None where it has none.

    It raises UserError for a schema or expression that cannot be followed.
    """
    known: list[Any] = []  # the tokenizer as llguidance needs it, made when it is needed
    ready: dict[str, Any] = {}  # the latest text's, as n texts of a request have the same

    def grammar(config: SamplingConfig) -> TextGrammar | None:
        if config.regex is None and config.json_schema is None:
            return None
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise UserError("json_schema and regex need the package llguidance: pip install "
                            "llguidance") from error
        if not known:
            known.append(LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)),
                                     eos_token=[*tokenizer.stop_tokens]))
        if config.json_schema is None:
            name, text = "regex", LLMatcher.grammar_from_regex(config.regex or "")
        else:
            name, text = "json_schema", LLMatcher.grammar_from_json_schema(config.json_schema)
        matcher = ready.get(text)
        if matcher is None:
            matcher = LLMatcher(known[0], text)
            if matcher.is_error():
                raise UserError(f"{name}: {_reason(matcher.get_error())}")
            matcher.compute_bitmask()  # which may take seconds, the first time, and not in a step
            ready.clear()
            ready[text] = matcher
        found = TextGrammar(matcher.deep_copy(), tokenizer.vocab_size, tokenizer.stop_tokens)
        found.check(config.forced_tokens)
        return found

    return grammar


def _reason(told: str) -> str:
    """One line of what llguidance says; of an expression, its text and what is wrong with it."""
    lines = [line.strip() for line in told.splitlines()]
    wrong = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if wrong is None:
        return lines[0]
    expression = lines[next(i for i, line in enumerate(lines) if "parse error" in line) + 1]
    return f"{expression}: {lines[wrong].removeprefix('error: ')}"


class _Vocabulary:
    """A tokenizer as llguidance asks for one: the bytes of every id."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        texts = tokenizer.text_ids
        self.eos_token_id, self.bos_token_id = tokenizer.end_of_text, tokenizer.begin_of_text
        self.tokens = [tokenizer.decode_bytes([i]) if i in texts else b""
                       for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if i not in texts]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_bytes(text)
