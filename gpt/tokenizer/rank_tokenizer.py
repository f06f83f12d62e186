"""A tokenizer as ranks, a pattern and control tokens, with tiktoken doing the work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from gpt.errors import UserError
from gpt.tokenizer.base import (
    END_OF_TEXT,
    MOST_IDS,
    Boundaries,
    Tokenizer,
    boundaries_of,
    digest_of,
    is_failure,
)
from gpt.tokenizer.fast_encoding import FastEncoding
from gpt.tokenizer.rank_file import rank_lines, read_ranks

WORTH_CUTTING = 800  # characters, from which FastEncoding wins back what its preparation takes
# In a row; with twice as many, the stack of tiktoken's regular expressions overflows.
MOST_BLANKS = 500_000
_LONG_BLANK = re.compile(r"\s{4096,}")


class RankTokenizer(Tokenizer):
    """Ranks (the bytes of each token, and its id), a pattern that cuts text, control tokens.

    All 256 single bytes have a rank, so any bytes survive a round trip.
    """

    kind = "ranks"

    def __init__(self, spec: str, ranks: dict[bytes, int], pattern: str, specials: dict[str, int],
                 boundaries: Boundaries | None = None, chat_template: str | None = None):
        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing:
            raise UserError(f"tokenizer {spec}: {len(missing)} of the 256 single bytes have no "
                            "token, so not every text could be encoded; use another rank file")
        if boundaries is None and END_OF_TEXT not in specials:
            raise UserError(f"tokenizer {spec}: it has no {END_OF_TEXT}, which ends documents; use "
                            "another one")
        if max((i for i in specials.values() if isinstance(i, int)), default=0) >= MOST_IDS:
            raise UserError(f"tokenizer {spec}: id {max(specials.values())} is beyond all "
                            "vocabularies; use another one")
        self.spec, self.chat_template = spec, chat_template
        self.ranks, self.pattern, self.specials = ranks, pattern, specials
        self._encoding = tiktoken.Encoding(spec, pat_str=pattern, mergeable_ranks=ranks,
                                           special_tokens=specials)
        self._set_boundaries(boundaries or Boundaries(specials[END_OF_TEXT]))

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes that encode: what it is made of."""
        return RankTokenizer, (self.spec, self.ranks, self.pattern, self.specials, self.boundaries,
                               self.chat_template), self._travelling()

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """The ids that stand for text: those of the ranks."""
        return frozenset(self.ranks.values())

    @cached_property
    def _fast_encoding(self) -> FastEncoding | None:
        return FastEncoding.of(self.pattern, self.ranks)

    @cached_property
    def _rank_lines(self) -> bytes:
        return rank_lines(self.ranks)

    @cached_property
    def _own_boundaries(self) -> dict[str, Any] | None:
        """The boundaries, unless they are the usual ones, which are nowhere written down."""
        if self.boundaries == Boundaries(self.specials.get(END_OF_TEXT, -1)):
            return None
        return self.boundaries._asdict()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ranks, pattern and control tokens: equal means identical ids."""
        parts = [[self.pattern, sorted(self.specials.items())], self._rank_lines]
        return digest_of(*parts, *filter(None, [self._own_boundaries]))

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_array` for each of several texts; many short ones cost little more than one."""
        fast = self._fast_encoding if sum(map(len, texts)) >= WORTH_CUTTING else None
        found = fast.encode_all(texts) if fast is not None else [None] * len(texts)
        return [self._encode_plainly(text) if ids is None else ids
                for text, ids in zip(texts, found, strict=True)]

    def _encode_plainly(self, text: str) -> np.ndarray:
        try:
            parts = [self._encoding.encode_to_numpy(part, disallowed_special=())
                     for part in _tame(text)]
        except BaseException as error:
            if not is_failure(error):
                raise
            raise UserError(f"tokenizer {self.spec} cannot encode this text: {error}") from error
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_invalid(self, data: bytes) -> list[int]:
        return [self.ranks[bytes([b])] for b in data]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for. Raises UserError for an id that is no token."""
        ids = [int(i) for i in ids]
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError) as error:
            raise self._no_token(next(i for i in ids if i not in self._ids)) from error

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text per token id, (vocab_size,) int64; control tokens have none."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def _meta(self) -> dict[str, Any]:
        meta = {"format_version": 1, "spec": self.spec, "pattern": self.pattern,
                "specials": self.specials, "sha256": self.fingerprint}
        return meta | ({"boundaries": self._own_boundaries} if self._own_boundaries else {})

    def _files(self) -> dict[str, bytes]:
        return {"ranks.tiktoken": self._rank_lines}

    @classmethod
    def _read(cls, folder: Path, meta: dict[str, Any],
              chat_template: str | None) -> RankTokenizer:
        ranks = read_ranks(folder / "ranks.tiktoken", from_zero=False)
        boundaries = boundaries_of(meta["boundaries"]) if "boundaries" in meta else None
        return cls(meta["spec"], ranks, meta["pattern"], meta["specials"], boundaries,
                   chat_template)


def _tame(text: str) -> list[str]:
    """The text in parts, cut inside runs of blanks that tiktoken cannot read whole."""
    parts, start = [], 0
    for run in _LONG_BLANK.finditer(text):
        for place in range(run.start() + MOST_BLANKS, run.end(), MOST_BLANKS):
            parts.append(text[start:place])
            start = place
    return [*parts, text[start:]] if start < len(text) or not parts else parts
