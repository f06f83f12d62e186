"""The order of training: a function of (seed, index), whoever reads it and in what portions."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import Order
from gpt.batches.order import Permutation, permuted_in_blocks, sequence_order

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)


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
    epochs = sequence_order(np.arange(6 * n), n, 3).reshape(6, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    if n > 6:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6


def test_the_order_of_earlier_versions_is_kept():
    """Runs that were started before can be continued."""
    assert sequence_order(np.arange(20), 13, 1337).tolist() == [
        5, 8, 7, 0, 2, 11, 4, 10, 3, 9, 6, 1, 12, 7, 2, 4, 8, 0, 11, 6]


def test_a_further_key_gives_an_order_of_its_own():
    indices = np.arange(64)
    orders = {tuple(sequence_order(indices, 32, 5, *keys)) for keys in ((), (0,), (1,), (1, 0))}
    assert len(orders) == 4


def test_blocks_are_permuted_within_themselves():
    permuted = permuted_in_blocks(np.arange(40), 8, 3).reshape(5, 8)
    assert [sorted(block) for block in permuted.tolist()] == np.arange(40).reshape(5, 8).tolist()
    assert len({tuple(block % 8) for block in permuted}) == 5


def test_an_order_of_a_trillion_sequences_is_computed_and_not_stored():
    n = 10**12
    tracemalloc.start()
    places = sequence_order(np.arange(3 * n - 500, 3 * n + 500), n, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places.min() >= 0 and places.max() < n
    assert len(set(places[:500].tolist())) == len(set(places[500:].tolist())) == 500
    assert peak < 2**20  # bytes; the order itself would take 8 · 10^12


def read_by(ranks: int, batch_size: int, micro_batch_size: int, step: int) -> list[list[int]]:
    """Indices that each rank reads in a step."""
    orders = [Order(batch_size, micro_batch_size, rank, ranks) for rank in range(ranks)]
    return [order.indices(step).tolist() for order in orders]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 12])
@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_ranks_together_read_what_one_rank_reads(ranks, batch_size, micro_batch_size):
    for step in (0, 1, 7):
        shares = read_by(ranks, batch_size, micro_batch_size, step)
        whole = list(range(step * batch_size, (step + 1) * batch_size))
        assert [i for share in shares for i in share] == whole
        assert shares == [part.tolist() for part in np.array_split(whole, ranks)]


def test_a_rank_reads_its_own_share_and_no_other():
    first, second = read_by(2, 6, 6, step=2)
    assert first == [12, 13, 14] and second == [15, 16, 17]


def test_a_rank_for_which_no_sequence_is_left_reads_nothing():
    order = Order(2, 1, rank=3, world_size=4)
    assert order.indices(5).tolist() == []
