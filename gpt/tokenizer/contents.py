"""What a tokenizer.json holds, as the tokenizers here need it.

To work that out takes longer than the `tokenizers` library takes to read the file, for large ones:
so it is kept in the user's cache, by the file's hash.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.files import kept
from gpt.tokenizer import alphabet, definition, merges, ranks
from gpt.tokenizer.base import digest_of
from gpt.tokenizer.definition import (
    Definition,
    control_tokens,
    library_of,
    opened,
    spelled,
    unknown_id,
)
from gpt.tokenizer.ranks import as_ranks

WORTH_KEEPING = 500_000  # characters of a file; a smaller one takes a few milliseconds
_OUTSIDE = ("vocab", "merges")  # of a model: nearly all of a file


class Contents:
    """A tokenizer.json.

    text: of the file. outline: what it says, but for vocabulary and merges. tokens: the bytes that
    each id stands for. unknown: the id of what the model does not know. pattern: what cuts a text
    for tiktoken, where that gives the same ids; else None. Raises ValueError for one that cannot be
    used.
    """

    def __init__(self, text: str, outline: Definition, tokens: dict[int, bytes],
                 unknown: int | None, pattern: str | None):
        self.text, self.outline, self.tokens = text, outline, tokens
        self.unknown, self.pattern = unknown, pattern

    @cached_property
    def definition(self) -> Definition:
        """All that it says."""
        found: Definition = json.loads(self.text)
        return found

    @cached_property
    def library(self) -> Any:
        """The `tokenizers.Tokenizer` of it."""
        return library_of(self.outline, self.text)

    @cached_property
    def specials(self) -> dict[str, int]:
        """Its control tokens."""
        return control_tokens(self.outline)

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        """The tokens that are text, for tiktoken."""
        controls = frozenset(self.specials.values())
        return {token: i for i, token in self.tokens.items() if i not in controls}

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name; None if there is none."""
        if name in self.specials:
            return self.specials[name]
        if self.pattern is None:
            found: int | None = self.library.token_to_id(name)
            return found
        try:
            return self.ranks.get(alphabet.token_of(name))
        except KeyError:  # a character that stands for no byte
            return None

    def name_of(self, i: int) -> str:
        """The name of a token by its id."""
        if self.pattern is None or i in self.specials.values():
            named = {known: name for name, known in self.specials.items()}
            return named[i] if i in named else self.library.id_to_token(i)
        return alphabet.name_of(self.tokens[i])


def contents_of(text: str, given: Definition | None = None) -> Contents:
    """What the text of a tokenizer.json holds. given: what it says, where that is known.

    Raises ValueError for one that cannot be used.
    """
    if len(text) < WORTH_KEEPING:
        return _worked_out(text, given)
    made: list[Contents] = []

    def make() -> bytes:
        made.append(_worked_out(text, given))
        return _packed(made[0])

    data = kept(f"tokenizer-{_key(text)}", make)
    return made[0] if made else _unpacked(text, data)


def _key(text: str) -> str:
    """Of a text, and of what makes something of it here."""
    code = [Path(str(module.__file__)).read_bytes()
            for module in (alphabet, definition, merges, ranks)]
    return digest_of(*code, Path(__file__).read_bytes(), text.encode("utf-8", "surrogatepass"))


def _worked_out(text: str, given: Definition | None) -> Contents:
    given = json.loads(text) if given is None else given
    made = opened(given, text)
    model = {name: value for name, value in given["model"].items() if name not in _OUTSIDE}
    for_tiktoken = as_ranks(given)
    if for_tiktoken is None:
        tokens = dict(zip(made.ids.values(), spelled(given, made.ids), strict=True))
        pattern = None
    else:
        tokens = {i: token for token, i in for_tiktoken.ranks.items()}
        tokens |= {i: name.encode() for name, i in control_tokens(given).items()}
        pattern = for_tiktoken.pattern
    contents = Contents(text, {**given, "model": model}, tokens, unknown_id(given, made.ids),
                        pattern)
    contents.definition, contents.library = given, made.library
    return contents


def _packed(contents: Contents) -> bytes:
    """A line of JSON, then ids, lengths and bytes of all tokens."""
    head = {"outline": contents.outline, "unknown": contents.unknown, "pattern": contents.pattern,
            "tokens": len(contents.tokens)}
    numbers = np.array([[*contents.tokens], [*map(len, contents.tokens.values())]], dtype="<u4")
    rest = numbers.tobytes() + b"".join(contents.tokens.values())
    return json.dumps(head).encode() + b"\n" + rest


def _unpacked(text: str, data: bytes) -> Contents:
    line, _, rest = data.partition(b"\n")
    head = json.loads(line)
    count = head["tokens"]
    ids, lengths = np.frombuffer(rest, "<u4", 2 * count).reshape(2, count)
    ends = np.cumsum(lengths, dtype=np.int64) + 8 * count
    starts = (ends - lengths).tolist()
    tokens = {i: rest[start:end]
              for i, start, end in zip(ids.tolist(), starts, ends.tolist(), strict=True)}
    return Contents(text, head["outline"], tokens, head["unknown"], head["pattern"])
