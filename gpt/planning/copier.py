"""What a model has yet to learn of copying: its loss with a copier at its side.

In training there comes a time when models learn to repeat what stood in their context, and losses
fall as they did not before (Olsson et al. 2022, arXiv:2209.11895); no shorter run shows when. The
loss of a model together with something that copies falls evenly through that time, and what the
copier still adds tells whether it has come.

The copier looks up how the last tokens went on when they last stood in the same context; the
longer the match, the likelier it is right, and so much of the probability it has. As an addition to
a model: Grave et al. 2017 (arXiv:1612.04426), by matches of tokens rather than of states.
"""

from __future__ import annotations

import numpy as np

from gpt.evaluation import Scored

LONGEST = 3  # tokens of a match
SHARES = np.concatenate([[0.0], np.geomspace(0.001, 0.8, 30)])  # of the probability


def beside_a_copier(scored: Scored) -> float:
    """Nats per token of a model and a copier together, with the shares that are best for each
    length of match. scored: what the model alone thought of each token."""
    lengths, hits = copied(scored.ids, scored.read)
    total = float(scored.losses[lengths == 0].sum(dtype=np.float64))
    for length in range(1, LONGEST + 1):
        there = lengths == length
        alone, right = np.exp(-scored.losses[there].astype(np.float64)), hits[there]
        total += min(float(-np.log((1 - share) * alone + share * right).sum())
                     for share in SHARES)
    return total / len(scored)


def copied(ids: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how many tokens before it stood there before, 0 to LONGEST; whether it followed them then
    too), (N,) each. read: how much of its row each token was predicted from, as in Scored."""
    lengths, hits = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    starts = np.flatnonzero(read == 1)
    for start, row in zip(starts, np.split(ids, starts[1:]), strict=True):
        tokens = row.tolist()
        for length in range(1, LONGEST + 1):
            followed: dict[tuple[int, ...], int] = {}
            for place in range(length, len(tokens)):
                before, token = tuple(tokens[place - length:place]), tokens[place]
                if before in followed:
                    lengths[start + place] = length
                    hits[start + place] = followed[before] == token
                followed[before] = token
    return lengths, hits
