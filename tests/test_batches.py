"""The order of training sequences, and the windows that cut a stream into inputs and targets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import (
    IGNORE,
    EvaluationWindows,
    MicroBatch,
    Permutation,
    Windows,
    sequence_order,
)
from gpt.errors import UserError
from gpt.shards import TokenStream

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)
FIRST_CONTEXT = 10**6


def counting_stream(length: int) -> TokenStream:
    """0, 1, 2, … in two shards, so that a token is its own position."""
    tokens = np.arange(length)
    return TokenStream([part for part in (tokens[:length // 3], tokens[length // 3:]) if len(part)])


def windows(length: int = 100, block_size: int = 8, batch_size: int = 4,
            micro_batch_size: int = 2, seed: int = 1) -> Windows:
    return Windows(counting_stream(length), block_size, batch_size, micro_batch_size, seed)


def rows(batches: Windows, steps: range) -> list[list[int]]:
    """Input rows of these steps, in order."""
    return [row for step in steps for part in batches.step(step) for row in part.inputs.tolist()]


@pytest.mark.parametrize("keys", [(0,), (7, 3)])
def test_a_permutation_is_one_to_one_for_every_size(keys):
    for n in range(1, 301):
        assert sorted(Permutation(n, *keys)(np.arange(n)).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2**40 - 1, 2**40, 2**40 + 1, 10**12, 2**62])
def test_a_permutation_of_a_huge_range_is_in_range_and_never_repeats(n):
    indices = np.unique(np.concatenate((
        np.arange(5_000), n - 1 - np.arange(5_000),
        np.random.default_rng(0).integers(0, n, 20_000))))
    places = Permutation(n, 5)(indices)
    assert places.min() >= 0 and places.max() < n
    assert len(np.unique(places)) == len(indices)
    # The mean of k uniform places has a standard deviation of n / sqrt(12 k).
    assert abs(places.mean() / n - 0.5) < 6 / np.sqrt(12 * len(indices))


def test_a_permutation_is_the_same_however_its_indices_are_asked_for():
    permutation = Permutation(1000, 3)
    whole = permutation(np.arange(1000))
    assert [int(permutation(np.array([i]))[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()
    assert np.array_equal(Permutation(1000, 3)(np.arange(1000)), whole)


def test_different_keys_give_different_orders_and_none_is_the_identity():
    orders = {tuple(Permutation(50, seed, epoch)(np.arange(50)).tolist())
              for seed in range(12) for epoch in range(12)}
    assert len(orders) == 144
    assert tuple(range(50)) not in orders


def test_a_large_seed_is_not_a_later_epoch_of_a_small_one():
    indices = np.arange(50)
    assert not np.array_equal(Permutation(50, 1 + 5 * 2**32, 0)(indices),
                              Permutation(50, 1, 5)(indices))


def test_every_order_of_a_few_items_comes_up_about_equally_often():
    """1,200 draws of 6 orders: each count is 200 with a standard deviation below 13."""
    counts = Counter(tuple(Permutation(3, key)(np.arange(3)).tolist()) for key in range(1_200))
    assert len(counts) == 6
    assert all(abs(count - 200) < 6 * 13 for count in counts.values())


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_a_permutation_of_an_impossible_size_is_refused(n):
    with pytest.raises(ValueError, match=rf"needs 1 to 2\^62 items, not {n}"):
        Permutation(n, 0)


def test_the_indices_given_to_a_permutation_are_left_alone():
    indices = np.arange(5)
    Permutation(5, 0)(indices)
    assert indices.tolist() == [0, 1, 2, 3, 4]


@SEEDED
@given(n=st.integers(4, 40), start=st.integers(0, 50), length=st.integers(1, 50),
       seed=st.integers(0, 2**63 - 1))
def test_a_stretch_of_the_order_does_not_depend_on_where_reading_began(n, start, length, seed):
    whole = sequence_order(np.arange(100), n, seed)
    assert np.array_equal(sequence_order(np.arange(start, start + length), n, seed),
                          whole[start:start + length])


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_every_epoch_visits_each_sequence_once_in_an_order_of_its_own(n):
    epochs = sequence_order(np.arange(6 * n), n, seed=3).reshape(6, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    if n > 6:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6


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
        f"the training split has {length} tokens, fewer than one sequence of model.block_size + 1 "
        "= 9; give more text or a smaller model.block_size")
    assert rows(windows(9), range(1))[0] == list(range(8))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 50])
def test_evaluation_makes_each_token_a_target_once_after_its_true_predecessor(length, batch_size):
    parts = list(EvaluationWindows(counting_stream(length), FIRST_CONTEXT, 8, batch_size))
    inputs = torch.cat([part.inputs for part in parts])
    targets = torch.cat([part.targets for part in parts])
    scored = targets != IGNORE
    assert targets[scored].tolist() == list(range(length))
    assert inputs[scored].tolist() == [FIRST_CONTEXT, *range(length - 1)]
    assert all(len(part.inputs) <= batch_size for part in parts)
    assert sum(part.supervised_tokens for part in parts) == length


def test_evaluation_pads_with_targets_that_do_not_count_and_inputs_that_are_tokens():
    [part] = EvaluationWindows(counting_stream(10), 3, 8, 4)
    assert part.targets[1].tolist() == [8, 9] + [IGNORE] * 6
    assert part.inputs[1].tolist() == [7, 8] + [3] * 6


def test_evaluation_of_nothing_has_no_batches():
    assert list(EvaluationWindows(counting_stream(0), 3, 8, 4)) == []


@SEEDED
@given(length=st.integers(1, 300), max_tokens=st.integers(1, 400), block_size=st.integers(1, 16))
def test_a_limited_evaluation_scores_distinct_windows_of_about_the_limit(length, max_tokens,
                                                                        block_size):
    def scored(limit: int | None) -> list[int]:
        parts = EvaluationWindows(counting_stream(length), FIRST_CONTEXT, block_size, 4, limit)
        return [t for part in parts for t in part.targets.flatten().tolist() if t != IGNORE]

    found = scored(max_tokens)
    assert len(set(found)) == len(found)
    if max_tokens >= length:
        assert found == scored(None)
    else:
        assert 0 < len(found) <= max(max_tokens, block_size)
        assert len(found) > max_tokens - 2 * block_size


def test_a_limited_evaluation_is_spread_over_the_whole_split():
    [part] = EvaluationWindows(counting_stream(100), FIRST_CONTEXT, 10, 9, max_tokens=40)
    assert part.targets[:, 0].tolist() == [0, 20, 50, 70]


def test_ignored_targets_are_not_counted():
    targets = torch.tensor([[1, IGNORE], [IGNORE, IGNORE]])
    assert MicroBatch(torch.zeros_like(targets), targets, 0).supervised_tokens == 1
