"""tiktoken's file format for a byte-pair encoding: base64 of a token, a space, its rank."""

from __future__ import annotations

import base64
import re
from binascii import a2b_base64, b2a_base64
from operator import itemgetter
from pathlib import Path

from gpt.errors import UserError

_WELL_FORMED = re.compile(rb"(?:(?! )(?:[A-Za-z0-9+/]{4})*"
                          rb"(?:[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=))? [0-9]{1,7}\n)*")
MOST_RANKS = 10_000_000  # beyond all vocabularies


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    """A file's contents, in order of the ranks."""
    ordered = sorted(ranks.items(), key=itemgetter(1))
    return b"".join([b"%b %d\n" % (b2a_base64(token, newline=False), rank)
                     for token, rank in ordered])


def read_ranks(path: Path, from_zero: bool = True) -> dict[bytes, int]:
    """Read a .tiktoken file. Raises UserError naming the line that is wrong.

    from_zero: whether the lowest rank must be 0, as it is where no control token comes first.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the rank file {path}: {error.strerror}") from error
    words = data.split()
    ranks: dict[bytes, int] = {}
    if _WELL_FORMED.fullmatch(data):  # read at once, several times faster than line by line
        ranks = dict(zip(map(a2b_base64, words[::2]), map(int, words[1::2]), strict=True))
    if not ranks or 2 * len(ranks) != len(words):
        ranks = _read_lines(data, path)
    lowest = min(ranks.values(), default=-1)
    if len(set(ranks.values())) != len(ranks) or lowest < 0 or (from_zero and lowest > 0):
        raise UserError(f"{path}: ranks must start at 0 and stand once each")
    return ranks


def _read_lines(data: bytes, path: Path) -> dict[bytes, int]:
    """The same with an eye on every line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            decoded = base64.b64decode(token, validate=True)
            if decoded in ranks or int(rank) >= MOST_RANKS:
                raise ValueError("twice, or beyond all vocabularies")
            ranks[decoded] = int(rank)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: expected base64 and a rank, as in tiktoken's "
                            "files") from error
    return ranks
