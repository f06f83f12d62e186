"""Packing: pieces in few rows, and rows of documents in which every token is a target once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import IGNORE, Batches, DocumentRows, Order, Shuffled, Windows, pack
from gpt.batches.packing import best_fit
from gpt.errors import UserError
from tests.tiny import END, tokenized

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)


def fills(lengths: np.ndarray, capacity: int) -> list[int]:
    """Tokens in each row of a packing."""
    packing = pack(lengths, capacity)
    return [int(lengths[packing.row(row)].sum()) for row in range(len(packing))]


def best_fit_one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The textbook's algorithm: each piece into the fullest row that has room for it."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(rows)) if rows[row] + length <= capacity]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += length
        else:
            rows.append(length)
    return rows


@SEEDED
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80),
       capacity=st.integers(20, 40))
def test_whole_groups_are_packed_as_one_piece_after_another_would_be(lengths, capacity):
    found = fills(np.array(lengths), capacity)
    assert sorted(found) == sorted(best_fit_one_by_one(lengths, capacity))
    assert max(found) <= capacity


@SEEDED
@given(lengths=st.lists(st.integers(1, 9), max_size=60))
def test_every_piece_is_in_one_row(lengths):
    packing = pack(np.array(lengths, dtype=np.int64), 9)
    assert sorted(packing.pieces.tolist()) == list(range(len(lengths)))
    rows = [packing.row(row).tolist() for row in range(len(packing))]
    assert [piece for row in rows for piece in row] == packing.pieces.tolist() and all(rows)


def web_like_lengths(documents: int) -> np.ndarray:
    """Log-normal, with a median of 245 tokens and a mean of 503: about as in web text."""
    draws = np.random.default_rng(0).normal(5.5, 1.2, documents)
    return np.exp(draws).astype(np.int64) + 1


@pytest.mark.parametrize(("capacity", "most"), [(512, 0.02), (1024, 0.01), (4096, 0.01)])
def test_little_of_the_rows_is_padding_for_the_lengths_of_web_text(capacity, most):
    lengths = web_like_lengths(20_000) % capacity
    lengths = lengths[lengths > 0]
    rows, bound = len(pack(lengths, capacity)), -(-int(lengths.sum()) // capacity)
    assert bound <= rows <= bound * (1 + most)
    alone = 1 - lengths.sum() / (len(lengths) * capacity)
    assert alone > 0.5  # a row for each piece would be mostly padding


def test_the_work_grows_with_the_number_of_lengths_and_not_of_pieces():
    counts = np.bincount(web_like_lengths(1_000) % 512, minlength=513)
    counts[0] = 0
    few, many = best_fit(counts, 512), best_fit(counts * 10_000, 512)
    assert len(many) < 2 * len(few)
    held = sum(alike.rows * length * each for alike in many for length, each in alike.contents)
    assert held == 10_000 * int((counts * np.arange(513)).sum())


@pytest.mark.parametrize("lengths", [[0], [3, 9], [-1]])
def test_a_piece_that_fits_nowhere_is_refused(lengths):
    with pytest.raises(ValueError, match="do not all fit into rows of 1 to 8"):
        pack(np.array(lengths), 8)
    assert sorted(fills(np.array([1, 8]), 8)) == [1, 8]


def text_of(*lengths: int) -> list[int]:
    """Documents of these lengths, end-of-text included, of distinct tokens."""
    tokens = iter(range(10**6))
    return [token for length in lengths
            for token in [*(next(tokens) for _ in range(length - 1)), END]]


def every_row(rows: DocumentRows) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each row, padding taken off."""
    batch = rows.read(np.arange(len(rows)))
    counted = [(row != IGNORE).sum() for row in batch.targets]
    return [(inputs[:n].tolist(), targets[:n].tolist())
            for inputs, targets, n in zip(batch.inputs, batch.targets, counted, strict=True)]


def test_a_row_holds_whole_documents_each_predicted_from_end_of_text():
    tokens = text_of(3, 5, 4)
    rows = every_row(DocumentRows(tokenized(tokens), 8))
    a, b, c = [0, 1, END], [2, 3, 4, 5, END], [6, 7, 8, END]
    assert sorted(rows) == sorted([([END, 2, 3, 4, 5, END, 0, 1], b + a), ([END, 6, 7, 8], c)])


def test_a_long_document_fills_rows_of_its_own_and_its_rest_is_packed():
    tokens = text_of(19, 4)
    rows = every_row(DocumentRows(tokenized(tokens), 8))
    assert rows == [([END, *range(7)], list(range(8))), (list(range(7, 15)), list(range(8, 16))),
                    ([END, 18, 19, 20, 15, 16, 17], [18, 19, 20, END, 16, 17, END])]


def test_an_empty_document_is_an_end_of_text_after_another():
    rows = every_row(DocumentRows(tokenized([END, END, 5, END]), 8))
    assert rows == [([END, 5, END, END], [5, END, END, END])]


def test_rows_are_filled_up_with_end_of_text_that_no_target_follows():
    batch = DocumentRows(tokenized([1, 2, END]), 6).read(np.array([0]))
    assert batch.inputs.tolist() == [[END, 1, 2, END, END, END]]
    assert batch.targets.tolist() == [[1, 2, END, IGNORE, IGNORE, IGNORE]]
    assert batch.tokens == 3


@SEEDED
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), block_size=st.integers(1, 16))
def test_every_token_is_a_target_once_and_stands_behind_its_true_predecessor(lengths, block_size):
    tokens = text_of(*lengths)
    rows = DocumentRows(tokenized(tokens), block_size)
    pairs = Counter(pair for row in every_row(rows) for pair in zip(*row, strict=True))
    assert pairs == Counter(zip([END, *tokens[:-1]], tokens, strict=True))
    assert rows.padding == pytest.approx(1 - len(tokens) / (len(rows) * block_size))


@pytest.mark.parametrize("kind", [Windows, DocumentRows])
@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_an_epoch_drops_no_token_in_either_packing(kind, epoch):
    """Windows: all but the stream's first token, the last window twice where it overlaps."""
    tokens = text_of(3, 30, 5, 1, 9, 17, 2)
    sequences = kind(tokenized(tokens), 8)
    n = len(sequences)
    batches = Batches(Shuffled(sequences, 1), Order(1, 1))
    targets = Counter(t for step in range(epoch * n, (epoch + 1) * n)
                      for part in batches.step(step) for t in part.targets.flatten().tolist()
                      if t != IGNORE)
    if kind is DocumentRows:
        assert targets == Counter(tokens)
    else:
        assert Counter(tokens[1:]) <= targets and targets.total() == 8 * n


def test_the_padding_of_document_rows_is_small_for_typical_lengths():
    lengths = web_like_lengths(2_000)
    tokens = np.zeros(lengths.sum(), dtype=np.int64)
    tokens[np.cumsum(lengths) - 1] = END
    rows = DocumentRows(tokenized(tokens), 1024)
    assert 0 <= rows.padding < 0.01
    assert len(rows) * 1024 * (1 - rows.padding) == pytest.approx(lengths.sum())


def test_documents_without_tokens_are_refused():
    with pytest.raises(UserError, match="the text has no tokens; give more text"):
        DocumentRows(tokenized([]), 8)


def test_an_id_that_the_vocabulary_does_not_have_is_refused():
    def read(vocab_size: int) -> None:
        corpus = tokenized([1, 2, 7, 3, 0], vocab_size, end_of_text=0)
        DocumentRows(corpus, 4).read(np.arange(2))

    read(vocab_size=8)
    with pytest.raises(UserError, match="the text has the id 7 at token 2, outside its vocabulary"):
        read(vocab_size=7)
