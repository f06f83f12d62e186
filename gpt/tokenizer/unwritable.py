"""Characters that a vocabulary cannot write, since some bytes have no token in it."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

REPLACEMENT = "\ufffd"
_CHARACTERS = 0x110000
# By the number of its bytes: the first character that takes so many, and what its first byte has
# above the character's own bits (RFC 3629).
_FORMS = ((1, 0, 0), (2, 0x80, 0xC0), (3, 0x800, 0xE0), (4, 0x10000, 0xF0))


def characters_with(lacking: Collection[int]) -> re.Pattern[str] | None:
    """What matches every character whose UTF-8 holds one of these bytes; None if there is none."""
    found = _have(np.isin(np.arange(256), list(lacking)))
    edges = np.flatnonzero(np.diff(found, prepend=False, append=False)).reshape(-1, 2).tolist()
    if not edges:
        return None
    return re.compile("[" + "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in edges)
                      + "]")


def _have(is_lacking: np.ndarray) -> np.ndarray:
    """Whether each character has such a byte, (1114112,) bool; surrogates are none."""
    found = np.zeros(_CHARACTERS, dtype=bool)
    ends = [first for _, first, _ in _FORMS[1:]] + [_CHARACTERS]
    for (count, first, marks), end in zip(_FORMS, ends, strict=True):
        codes = np.arange(first, end)
        found[first:end] = is_lacking[marks | (codes >> 6 * (count - 1))]
        for place in range(count - 1):
            found[first:end] |= is_lacking[0x80 | (codes >> 6 * place & 0x3F)]
    found[0xD800:0xE000] = False
    return found
