"""Byte-level names: how GPT-2, and `tokenizers` after it, write bytes as visible characters."""

from __future__ import annotations


def _visible_characters() -> dict[int, str]:
    """Printable bytes stand for themselves, the others follow from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), `bytes_to_unicode` in its encoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


VISIBLE = _visible_characters()
_BYTE_OF = {character: b for b, character in VISIBLE.items()}


def name_of(token: bytes) -> str:
    """A token's bytes as visible characters."""
    return "".join([VISIBLE[b] for b in token])


def token_of(name: str) -> bytes:
    """The bytes that a name stands for. Raises KeyError for a character that stands for none."""
    return bytes([_BYTE_OF[c] for c in name])
