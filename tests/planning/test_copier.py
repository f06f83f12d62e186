"""A copier at a model's side: what it finds in a context, and what it adds to a loss."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.evaluation import Scored
from gpt.planning.copier import LONGEST, beside_a_copier, copied


def scored(rows, losses):
    """As a model scores rows, each from its own beginning."""
    ids = np.concatenate(rows)
    read = np.concatenate([np.arange(1, 1 + len(row)) for row in rows])
    return Scored(ids, np.broadcast_to(np.float32(losses), ids.shape), read,
                  np.zeros(len(ids), np.float32), np.zeros(len(ids), bool))


def one_by_one(row):
    """(length, hit) for every place of a row, by looking at all that stands before it."""
    found = []
    for place in range(len(row)):
        length = hit = 0
        for size in range(1, min(LONGEST, place) + 1):
            before = row[place - size:place]
            ends = [end for end in range(size, place) if row[end - size:end] == before]
            if ends:
                length, hit = size, row[ends[-1]] == row[place]
        found.append((length, bool(hit)))
    return found


def test_how_the_last_tokens_went_on_is_looked_up_within_a_row():
    row = [1, 2, 3, 1, 2, 4, 1, 2, 4]
    lengths, hits = copied(np.array(row + row[:3]), np.array([*range(1, 10), 1, 2, 3]))
    #                                    1 2 3 1 2 4 1 2 4 | nothing stood before in this one
    assert lengths.tolist() ==          [0, 0, 0, 0, 1, 2, 0, 1, 2, 0, 0, 0]
    assert hits.astype(int).tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0]


def test_it_finds_what_looking_at_everything_finds():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 4, size).tolist() for size in (50, 1, 33)]
    lengths, hits = copied(np.concatenate(rows), scored(rows, 1.0).read)
    assert list(zip(lengths.tolist(), hits.tolist(), strict=True)) == [
        each for row in rows for each in one_by_one(row)]
    assert set(lengths.tolist()) == {0, 1, 2, 3} and 0 < hits.mean() < 1


@pytest.mark.parametrize("alone", [0.01, 1.0, 5.0])
def test_it_adds_most_to_a_model_that_does_not_copy_and_never_takes_away(alone):
    draw = np.random.default_rng(1)
    again = [draw.permutation(1000)[:20].tolist() * 2 for _ in range(30)]
    once = [draw.permutation(1000)[:40].tolist() for _ in range(30)]
    never_alike = [each for place in range(1, 20) for each in (0, place)]
    for rows in (once, [never_alike]):
        assert beside_a_copier(scored(rows, alone)) == pytest.approx(alone)
    found = beside_a_copier(scored(again, alone))
    # Of 40 tokens 19 are known to come: of the second half all but the first.
    share = 0.8
    expected = (21 * alone - 19 * np.log((1 - share) * np.exp(-alone) + share)) / 40
    assert found == pytest.approx(min(alone, expected), rel=1e-5)
    assert found < 0.6 * alone or alone == 0.01
