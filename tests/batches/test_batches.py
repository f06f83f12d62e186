"""What a step reads: windows of a stream in their order, and the texts that they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import (
    IGNORE,
    Batches,
    EvaluationWindows,
    MicroBatch,
    Order,
    Shuffled,
    TokenizedText,
    Windows,
)
from gpt.errors import UserError
from gpt.shards import TokenStream
from tests.tiny import END, counting_text, tokenized

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)


def windows(length: int = 100, block_size: int = 8, batch_size: int = 4,
            micro_batch_size: int = 2, seed: int = 1) -> Batches:
    return Batches(Shuffled(Windows(counting_text(length), block_size), seed),
                   Order(batch_size, micro_batch_size))


def rows(batches: Batches, steps: range) -> list[list[int]]:
    """Input rows of these steps, in order."""
    return [row for step in steps for part in batches.step(step) for row in part.inputs.tolist()]


def test_the_order_belongs_to_the_seed():
    first = rows(windows(seed=1), range(3))
    assert rows(windows(seed=1), range(3)) == first
    assert rows(windows(seed=2), range(3)) != first


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5, 12, 99])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_the_order_of_sequences_depends_on_no_batch_size(batch_size, micro_batch_size):
    expected = rows(windows(batch_size=1, micro_batch_size=1), range(24))
    batches = windows(batch_size=batch_size, micro_batch_size=micro_batch_size)
    assert rows(batches, range(24 // batch_size)) == expected


def test_a_step_is_cut_into_micro_batches_and_is_the_same_whenever_it_is_read():
    batches = windows(batch_size=7, micro_batch_size=3)
    batches.step(9)
    parts = batches.step(2)
    assert [len(part.inputs) for part in parts] == [3, 3, 1]
    for part, again in zip(parts, windows(batch_size=7, micro_batch_size=3).step(2), strict=True):
        assert torch.equal(part.inputs, again.inputs) and torch.equal(part.targets, again.targets)


def test_each_target_is_the_token_after_its_input():
    for part in windows().step(0):
        assert part.inputs.shape == part.targets.shape == (2, 8)
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert torch.equal(part.targets, part.inputs + 1)
        assert part.supervised_tokens == 16


@pytest.mark.parametrize("length", [9, 10, 16, 17, 18, 24, 25, 100])
def test_every_token_with_a_predecessor_is_a_target_in_every_epoch(length):
    batches = windows(length, batch_size=1)
    n = batches.sequences_per_epoch
    assert n == -(-(length - 1) // 8)
    for epoch in range(3):
        steps = range(epoch * n, (epoch + 1) * n)
        targets = {t for step in steps for part in batches.step(step)
                   for t in part.targets.flatten().tolist()}
        assert targets == set(range(1, length))
        assert len({tuple(row) for row in rows(batches, steps)}) == n


def test_only_the_last_window_overlaps_another():
    starts = sorted(row[0] for row in rows(windows(28, batch_size=1), range(4)))
    assert starts == [0, 8, 16, 19]


@pytest.mark.parametrize("length", [0, 1, 8])
def test_a_corpus_shorter_than_one_sequence_is_refused(length):
    with pytest.raises(UserError) as caught:
        windows(length)
    assert str(caught.value) == (
        f"the text has {length} tokens, fewer than one sequence of model.block_size + 1 = 9; give "
        "more text or a smaller model.block_size")
    assert rows(windows(9), range(1))[0] == list(range(8))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 50])
def test_evaluation_makes_each_token_a_target_once_after_its_true_predecessor(length, batch_size):
    parts = list(EvaluationWindows(counting_text(length), 8, batch_size))
    scored = [part.targets != IGNORE for part in parts]
    targets = torch.cat([part.targets[where] for part, where in zip(parts, scored, strict=True)])
    inputs = torch.cat([part.inputs[where] for part, where in zip(parts, scored, strict=True)])
    assert targets.tolist() == list(range(length))
    assert inputs.tolist() == [END, *range(length - 1)]
    assert all(part.targets[0, -1] != IGNORE for part in parts)  # no wider than the longest
    assert all(len(part.inputs) <= batch_size for part in parts)
    assert sum(part.supervised_tokens for part in parts) == length


def test_evaluation_pads_with_targets_that_do_not_count_and_inputs_that_are_tokens():
    [part] = EvaluationWindows(counting_text(10), 8, 4)
    assert part.targets[1].tolist() == [8, 9] + [IGNORE] * 6
    assert part.inputs[1].tolist() == [7, 8] + [END] * 6


def test_evaluation_of_nothing_has_no_batches():
    assert list(EvaluationWindows(counting_text(0), 8, 4)) == []


@SEEDED
@given(length=st.integers(1, 300), max_tokens=st.integers(1, 400), block_size=st.integers(1, 16))
def test_a_limited_evaluation_scores_distinct_windows_of_about_the_limit(length, max_tokens,
                                                                        block_size):
    def scored(limit: int | None) -> list[int]:
        parts = EvaluationWindows(counting_text(length), block_size, 4, limit)
        return [t for part in parts for t in part.targets.flatten().tolist() if t != IGNORE]

    found = scored(max_tokens)
    assert len(set(found)) == len(found)
    if max_tokens >= length:
        assert found == scored(None)
    else:
        assert 0 < len(found) <= max(max_tokens, block_size)
        assert len(found) > max_tokens - 2 * block_size


def test_a_limited_evaluation_is_spread_over_the_whole_split():
    [part] = EvaluationWindows(counting_text(100), 10, 9, max_tokens=40)
    assert part.targets[:, 0].tolist() == [0, 20, 50, 70]


def test_ignored_targets_are_not_counted():
    targets = torch.tensor([[1, IGNORE], [IGNORE, IGNORE]])
    assert MicroBatch(torch.zeros_like(targets), targets, 0).supervised_tokens == 1


def test_four_ranks_read_the_rows_of_one():
    whole = windows(batch_size=6)
    source = Shuffled(Windows(counting_text(100), 8), 1)
    for step in range(4):
        parts = [part for rank in range(4) for part in Batches(
            source, Order(6, 2, rank, 4)).step(step)]
        assert torch.cat([part.inputs for part in parts]).tolist() == rows(whole,
                                                                           range(step, step + 1))


class Counting(TokenStream):
    """A stream that takes no memory, however long."""

    def __init__(self, length: int):
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop)


def test_a_text_far_larger_than_memory_is_read_in_order():
    corpus = TokenizedText(Counting(10**15), 2**62, END, "the text")
    batches = Batches(Shuffled(Windows(corpus, 8), 1), Order(3, 2))
    first = [row[0] for row in rows(batches, range(5))]
    assert batches.sequences_per_epoch == 125_000_000_000_000
    assert all(start % 8 == 0 for start in first) and len(set(first)) == 15
    assert max(first) > 10**14


@pytest.mark.parametrize("place", [0, 5, 16, 17, 40])
def test_an_id_that_the_vocabulary_does_not_have_is_refused_with_its_place(place):
    tokens = np.arange(41) % 7
    good, tokens_with_it = tokenized(tokens, vocab_size=7), tokens.copy()
    tokens_with_it[place] = 7
    bad = tokenized(tokens_with_it, vocab_size=7)
    message = (f"the text has the id 7 at token {place}, outside its vocabulary of 7: a shard is "
               "damaged; prepare the dataset again")
    for read in (lambda corpus: Windows(corpus, 8).read(np.arange(5)),
                 lambda corpus: list(EvaluationWindows(corpus, 8, 2))):
        read(good)
        with pytest.raises(UserError) as caught:
            read(bad)
        assert str(caught.value) == message
