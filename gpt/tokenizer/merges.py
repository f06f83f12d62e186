"""The merges that ranks stand for.

tiktoken joins any two neighbours that make a token, the lowest rank first. `tokenizers` and GGUF
want a list of pairs instead. One pair per token is enough: until a token comes about, the bytes
that it covers are merged as they would be standing alone (a merge across its border would be the
end of it), so its last two parts are always the same two.
"""

from __future__ import annotations

_NO_RANK = 1 << 62  # above all ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each token the pair that it is merged from, in order of the ranks, which hold all bytes.

    Single bytes have none, nor have tokens whose bytes merge into no such pair: those appear only
    where a whole piece of text is looked up.
    """
    pairs = (_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__)
             if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that byte-pair encoding joins last; None if it gets stuck before."""
    parts = [token[i:i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i:i + 2], _NO_RANK) for i in range(len(token) - 1)]
    while len(parts) > 2:
        lowest = min(pairs)
        if lowest == _NO_RANK:
            return None
        at = pairs.index(lowest)
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        if at > 0:
            pairs[at - 1] = ranks.get(parts[at - 1] + parts[at], _NO_RANK)
        if at < len(pairs):
            pairs[at] = ranks.get(parts[at] + parts[at + 1], _NO_RANK)
    return parts[0], parts[1]
