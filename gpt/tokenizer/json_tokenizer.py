"""A tokenizer.json as it is, with the library `tokenizers` doing the work.

For what tiktoken cannot do to the same ids: normalizers (Qwen's NFC), SentencePiece's dummy prefix
and byte fallback (Llama 2, Mistral, Gemma), added tokens that text may become, other patterns.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.tokenizer.alphabet import VISIBLE
from gpt.tokenizer.base import Boundaries, Tokenizer, boundaries_of, digest_of, is_failure
from gpt.tokenizer.contents import Contents, contents_of
from gpt.tokenizer.cutting import encodes_in_pieces
from gpt.tokenizer.definition import (
    Definition,
    is_byte_level,
    library_of,
    prefixes_after_controls,
    stripping,
    without_prefix,
)
from gpt.tokenizer.unwritable import characters_with

_FILE = "tokenizer.json"


class JsonTokenizer(Tokenizer):
    """A tokenizer.json. Raises ValueError for one that cannot be used."""

    kind = "tokenizer.json"

    def __init__(self, spec: str, definition: str, boundaries: Boundaries,
                 chat_template: str | None = None, contents: Contents | None = None):
        """definition: the text of the file. contents: what it holds, where that is known."""
        self.spec, self.chat_template, self.definition = spec, chat_template, definition
        self._contents = contents or contents_of(definition)
        self._outline, self._library = self._contents.outline, self._contents.library
        self.specials, self._tokens = self._contents.specials, self._contents.tokens
        self._unknown = self._contents.unknown
        self._never_text = frozenset(self.specials.values()) - {self._unknown}
        self.prefixes_space = without_prefix(self._outline) != self._outline
        self._set_boundaries(boundaries)

    @property
    def parsed(self) -> Definition:
        """All that the definition says."""
        return self._contents.definition

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes that encode: what it is made of."""
        made_of = (self.spec, self.definition, self.boundaries, self.chat_template)
        return JsonTokenizer, made_of, self._travelling()

    @cached_property
    def encodes_in_pieces(self) -> bool:  # type: ignore[override]
        """Whether a text cut between word and blank has the same ids."""
        texts = (token for i, token in self._tokens.items() if i in self.text_ids)
        return encodes_in_pieces(self.parsed, texts)

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """The ids that stand for text: all but those of control tokens."""
        return frozenset(self._tokens) - frozenset(self.specials.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the file and where texts begin and end: equal means identical ids."""
        return digest_of(self.boundaries._asdict(), self.definition.encode())

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_array` for each of several texts."""
        return self._encode_all_with(self._library, texts)

    def encode_behind_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_behind` for each of several texts."""
        return self._encode_all_with(self._library_without_prefix, texts)

    def _encode_all_with(self, library: Any, texts: Sequence[str]) -> list[np.ndarray]:
        """In one go, which is a fifth faster: without the places of tokens in a text."""
        if len(texts) > 1 and not any(map(self.unwritable_in, texts)):
            try:
                found = library.encode_batch_fast(list(texts), add_special_tokens=False)
                return [np.array(self._without_controls(one.ids), dtype=np.uint32)
                        for one in found]
            except BaseException as error:
                if not is_failure(error):
                    raise  # else one by one, to name the text that cannot be encoded
        return [np.array(self._encode_with(library, text), dtype=np.uint32) for text in texts]

    @cached_property
    def unwritable(self) -> re.Pattern[str] | None:  # type: ignore[override]
        """Characters that no token stands for.

        What takes their place in the library may be the token that ends texts, or nothing.
        """
        if not is_byte_level(self._outline):
            return None
        return characters_with([b for b, name in VISIBLE.items()
                                if self._library.token_to_id(name) is None])

    def _encode_with(self, library: Any, text: str) -> list[int]:
        if found := self.unwritable_in(text):
            place, problem = found
            raise UserError(f"{problem}, at place {place} of this text; take it out")
        try:
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not is_failure(error):
                raise
            raise UserError(f"tokenizer {self.spec} cannot encode this text: {error}") from error
        return self._without_controls(ids)

    def _without_controls(self, ids: list[int]) -> list[int]:
        """The same ids, but where a text spells a control token."""
        if self._never_text.isdisjoint(ids):
            return ids
        return [part for i in ids for part in (self._letters_of(i) if i in self._never_text
                                               else [i])]

    def _letters_of(self, control: int) -> list[int]:
        """A control token's name letter by letter, for a text that spells it."""
        name = next(name for name, i in self.specials.items() if i == control)
        letters = [self._single_bytes.get(b, self._unknown) for b in name.encode()]
        return [i for i in letters if i is not None]

    def encode_behind(self, text: str) -> list[int]:
        """Ids of a text that other text stands before, so that no prefix goes between."""
        return self._encode_with(self._library_without_prefix, text)

    def encode_after_control(self, text: str) -> list[int]:
        """Ids of a text that a control token stands before."""
        if prefixes_after_controls(self._outline):
            return self.encode(text)
        return self.encode_behind(text)

    @cached_property
    def stripping(self) -> dict[str, tuple[bool, bool]]:
        """Control tokens that take blanks away: (before, behind) by name."""
        return stripping(self._outline)

    def _encode_invalid(self, data: bytes) -> list[int]:
        """Single-byte tokens where there are some; otherwise U+FFFD for each byte."""
        if all(b in self._single_bytes for b in data):
            return [self._single_bytes[b] for b in data]
        return self.encode_behind(self._replacement * len(data))

    @cached_property
    def _library_without_prefix(self) -> Any:
        if not self.prefixes_space:
            return self._library
        unprefixed = without_prefix(self.parsed)
        return library_of(unprefixed, json.dumps(unprefixed))

    @cached_property
    def _single_bytes(self) -> dict[int, int]:
        """Ids of the bytes that have a token of their own."""
        return {token[0]: i for i in sorted(self.text_ids)
                if len(token := self._tokens[i]) == 1}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for. Raises UserError for an id that is no token."""
        ids = [int(i) for i in ids]
        try:
            return b"".join([self._tokens[i] for i in ids])
        except KeyError as error:
            raise self._no_token(error.args[0]) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text that tokens stand for, without the one space that was put before it."""
        ids = [int(i) for i in ids]
        begins = next((n for n, i in enumerate(ids) if i not in self._never_text), len(ids))
        text = self.decode_bytes(ids[begins:])
        if self.prefixes_space:
            text = text.removeprefix(b" ")
        return (self.decode_bytes(ids[:begins]) + text).decode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text per token id, (vocab_size,) int64; control tokens have none."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for i in self.text_ids:
            lengths[i] = len(self._tokens[i])
        return lengths

    def _meta(self) -> dict[str, Any]:
        return {"format_version": 1, "kind": self.kind, "spec": self.spec,
                "boundaries": self.boundaries._asdict(), "sha256": self.fingerprint,
                "json_sha256": _sha256(self.definition.encode())}

    def _files(self) -> dict[str, bytes]:
        return {_FILE: self.definition.encode()}

    @classmethod
    def _read(cls, folder: Path, meta: dict[str, Any],
              chat_template: str | None) -> JsonTokenizer:
        data = (folder / _FILE).read_bytes()
        if _sha256(data) != meta["json_sha256"]:
            raise UserError(f"{_FILE} is not the one that was saved")
        return cls(meta["spec"], data.decode(), boundaries_of(meta["boundaries"]), chat_template)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
