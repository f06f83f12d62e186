"""Seeds for every random draw of a run."""

from __future__ import annotations


def mix_seeds(*numbers: int) -> int:
    """One 63-bit seed from several numbers; any change in any of them changes it."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return mixed % 2**63
