"""What every tokenizer can do, whichever library does the work."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gpt.errors import UserError
from gpt.files import naming
from gpt.tokenizer.unwritable import REPLACEMENT

END_OF_TEXT = "<|endoftext|>"
MOST_IDS = 10_000_000  # beyond all vocabularies
CHAT_TEMPLATE, CHAT_FORMAT = "chat_template.jinja", "chat_format.json"

_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_INVALID = re.compile("([\udc80-\udcff]+)")


class Boundaries(NamedTuple):
    """The ids at which texts begin and end."""

    end_of_text: int
    begin_of_text: int | None = None
    other_stops: tuple[int, ...] = ()  # that end generation, as the end of a chat's turn does


class Tokenizer(ABC):
    """Text to token ids and back. Text never becomes a control token, whatever it spells."""

    kind: ClassVar[str]  # how its files are written
    _kinds: ClassVar[dict[str, type[Tokenizer]]] = {}

    spec: str  # what it was built from
    specials: dict[str, int]  # control tokens
    chat_template: str | None  # a Jinja text that travels along
    chat_format: str | None = None  # the same as data, in JSON: gpt/chat/format.py
    template_source: str = ""  # where the template stands, in words
    roles: dict[str, str] | None = None  # what a base model calls tokens, such as bos_token
    pad_token: int | None = None  # a base model's own, which exports keep; nothing here pads
    unwritable: re.Pattern[str] | None = None  # characters that no token stands for
    prefixes_space: bool = False  # whether a text is encoded as if a space stood before it
    encodes_in_pieces: bool = True  # so that a long text need not be in memory: see cutting

    def __init_subclass__(cls) -> None:
        cls._kinds[cls.kind] = cls

    def _set_boundaries(self, boundaries: Boundaries) -> None:
        self.boundaries = boundaries
        for i in (*self.stop_tokens, self.begin_of_text):
            if i is not None and i not in self._ids:
                raise UserError(f"tokenizer {self.spec}: texts begin or end at id {i}, which is no "
                                "token of it")

    def _travelling(self) -> dict[str, Any]:
        """What a copy has, beside what it is made of."""
        return {"chat_format": self.chat_format, "pad_token": self.pad_token,
                "template_source": self.template_source, "roles": self.roles}

    def stopping_at(self, token: int) -> Tokenizer:
        """The same tokenizer, with which generation ends at this control token, too."""
        if token in self.stop_tokens:
            return self
        other = copy.copy(self)
        for known in ("fingerprint", "_own_boundaries"):
            other.__dict__.pop(known, None)
        other._set_boundaries(self.boundaries._replace(
            other_stops=(*self.boundaries.other_stops, token)))
        return other

    @property
    def end_of_text(self) -> int:
        """The id that separates documents and ends answers; no text encodes to it."""
        return self.boundaries.end_of_text

    @property
    def begin_of_text(self) -> int | None:
        """The id that goes before every text, such as Llama's <s>; None if there is none."""
        return self.boundaries.begin_of_text

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end generation, end_of_text first."""
        return (self.end_of_text, *self.boundaries.other_stops)

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that have a role, by its name in Hugging Face's files, as chat templates call
        them."""
        if self.roles is not None:
            return self.roles
        found = {"eos_token": self.end_of_text, "bos_token": self.begin_of_text,
                 "pad_token": self.pad_token}
        return {role: self.token_text(i) for role, i in found.items() if i is not None}

    @property
    def stripping(self) -> dict[str, tuple[bool, bool]]:
        """Control tokens that take the blanks before or behind them away, as some do in Hugging
        Face's files: (before, behind) by name."""
        return {}

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._ids) + 1

    @cached_property
    def _ids(self) -> frozenset[int]:
        return self.text_ids | frozenset(self.specials.values())

    @property
    @abstractmethod
    def text_ids(self) -> frozenset[int]:
        """The ids that stand for text: neither control tokens nor gaps between ids."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over all that its ids depend on: equal means identical ids."""

    def writable(self, text: str) -> str:
        """The text with U+FFFD for every character that no token stands for."""
        return text if self.unwritable is None else self.unwritable.sub(self._replacement, text)

    @cached_property
    def _replacement(self) -> str:
        """Or a question mark, where not even that has a token."""
        lacking = self.unwritable is not None and self.unwritable.search(REPLACEMENT)
        return "?" if lacking else REPLACEMENT

    def unwritable_in(self, text: str) -> tuple[int, str] | None:
        """(place, what is wrong there) of the first character that no token stands for."""
        if self.unwritable is None or (match := self.unwritable.search(text)) is None:
            return None
        return match.start(), (f"the tokenizer {self.spec} has no token for the character "
                               f"U+{ord(match[0]):04X}")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Bytes that arrived as lone surrogates (PEP 383) are kept."""
        if not text.isascii() and _SURROGATE.search(text):
            text = _NO_BYTE.sub(REPLACEMENT, text)
            return self.encode_bytes(text.encode("utf-8", "surrogateescape"))
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` for a text without lone surrogates, (n,) uint32."""
        return self.encode_arrays([text])[0]

    @abstractmethod
    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_array` for each of several texts."""

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes; those that are not UTF-8 become single-byte tokens."""
        first, *others = _INVALID.split(data.decode("utf-8", "surrogateescape"))
        ids = self.encode(first)
        for invalid, text in zip(others[::2], others[1::2], strict=True):
            ids += self._encode_invalid(invalid.encode("utf-8", "surrogateescape"))
            ids += self.encode_behind(text) if text else []
        return ids

    @abstractmethod
    def _encode_invalid(self, data: bytes) -> list[int]:
        """Single-byte tokens."""

    def encode_behind(self, text: str) -> list[int]:
        """Token ids of a text that other text stands before: no prefix goes between them."""
        return self.encode(text)

    def encode_after_control(self, text: str) -> list[int]:
        """Token ids of a text that a control token stands before, as Hugging Face's tokenizers give
        them: some put their prefix there."""
        return self.encode_behind(text)

    def encode_behind_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same for each of several texts, (n,) uint32 each."""
        return [np.asarray(self.encode_behind(text), dtype=np.uint32) for text in texts]

    def encode_prompt(self, prompt: str | bytes, begin: bool = False) -> list[int]:
        """Token ids as a model is given them: begin_of_text first, where there is one.

        Otherwise end_of_text, the start of a document, stands before an empty prompt, and before
        any if it is to `begin` a document.
        """
        ids = self.encode_bytes(prompt) if isinstance(prompt, bytes) else self.encode(prompt)
        if self.begin_of_text is not None:
            return [self.begin_of_text, *ids]
        return [self.end_of_text, *ids] if begin or not ids else ids

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for. Raises UserError for an id that is no token."""

    def _no_token(self, wrong: int) -> UserError:
        return UserError(f"token id {wrong} is not in tokenizer {self.spec}, whose ids lie in "
                         f"0 to {self.vocab_size - 1}")

    def decode(self, ids: Iterable[int]) -> str:
        """Text that tokens stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        """What stands for a token, also for one that is no whole character, or no text."""
        if token not in self.text_ids:
            return next((name for name, i in self.specials.items() if i == token), "")
        return self.decode_bytes([token]).decode("utf-8", "backslashreplace")

    @abstractmethod
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text per token id, (vocab_size,) int64; control tokens have none."""

    def save(self, folder: Path) -> None:
        """Write all that is needed to encode and decode without a network."""
        folder.mkdir(parents=True, exist_ok=True)
        meta, files = self._meta(), self._files()
        if self.pad_token is not None:
            meta["pad_token"] = self.pad_token
        if self.roles is not None:
            meta["roles"] = self.roles
        files["encoding.json"] = (json.dumps(meta, indent=2) + "\n").encode()
        for name, text in ((CHAT_TEMPLATE, self.chat_template), (CHAT_FORMAT, self.chat_format)):
            if text is not None:
                files[name] = text.encode()
        for name, data in files.items():
            with naming(folder / name, len(data)):
                (folder / name).write_bytes(data)

    @abstractmethod
    def _meta(self) -> dict[str, Any]:
        """What encoding.json says."""

    @abstractmethod
    def _files(self) -> dict[str, bytes]:
        """The other files by name."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path, meta: dict[str, Any], chat_template: str | None) -> Tokenizer:
        """What `_meta` and `_files` wrote."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote. Raises UserError if anything in it changed."""
        try:
            meta = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))
            template, form = (path.read_bytes().decode() if path.is_file() else None
                              for path in (folder / CHAT_TEMPLATE, folder / CHAT_FORMAT))
            kind = cls._kinds[meta.get("kind", "ranks")]
            tokenizer = kind._read(folder, meta, template)
            tokenizer.chat_format, tokenizer.pad_token = form, meta.get("pad_token")
            tokenizer.roles = _roles_of(meta)
            tokenizer.template_source = str(folder / CHAT_TEMPLATE)
            intact = tokenizer.fingerprint == meta["sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
                RecursionError) as error:
            raise UserError(f"cannot read the tokenizer in {folder}: {error}") from error
        if tokenizer.pad_token not in (None, *tokenizer._ids):
            raise UserError(f"the tokenizer in {folder} is damaged: it pads with id "
                            f"{tokenizer.pad_token}, which is no token of it")
        if not intact:
            raise UserError(f"the tokenizer in {folder} is damaged: its hash is not the one it was "
                            "saved with; prepare the dataset again or use another checkpoint")
        return tokenizer


def is_failure(error: BaseException) -> bool:
    """Whether a library failed: one that is written in Rust may panic, which is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _roles_of(saved: dict[str, Any]) -> dict[str, str] | None:
    roles = saved.get("roles")
    if roles is not None and not all(isinstance(name, str) for name in roles.values()):
        raise ValueError("a token's name must be text")
    return roles


def boundaries_of(saved: dict[str, Any]) -> Boundaries:
    """The boundaries that encoding.json gives."""
    return Boundaries(saved["end_of_text"], saved["begin_of_text"], tuple(saved["other_stops"]))


def digest_of(*parts: Any) -> str:
    """SHA-256 over bytes, and over anything else as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return digest.hexdigest()
