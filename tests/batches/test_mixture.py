"""Several sources in one order: exact shares, nothing of a source skipped, any rank, any batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import IGNORE, Batches, DocumentRows, MicroBatch, Order, Windows
from gpt.batches.mixture import SLOTS, Mixture, apportion
from gpt.errors import UserError
from tests.tiny import END, tokenized

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)
WEIGHTS = (0.5, 0.3, 0.2)
SIZES = (100, 17, 30)  # sequences of each source


def mixture(seed: int = 1, weights: tuple[float, ...] = WEIGHTS) -> Mixture:
    """Source s counts from 10,000 · s on."""
    sources = [Windows(tokenized(10_000 * s + np.arange(8 * size + 1)), 8)
               for s, size in enumerate(SIZES)]
    return Mixture(sources, weights, seed)


def firsts(batches: Batches, steps: range) -> list[int]:
    """The first input of each row of these steps."""
    return [row[0] for step in steps for part in batches.step(step) for row in part.inputs.tolist()]


@SEEDED
@given(weights=st.lists(st.floats(1, 100), min_size=1, max_size=8))
def test_slots_are_shared_out_within_one_of_the_exact_share(weights):
    slots = apportion(weights, SLOTS)
    assert slots.sum() == SLOTS
    assert (np.abs(slots - np.array(weights) / sum(weights) * SLOTS) < 1).all()


def test_what_rounding_leaves_goes_to_the_largest_remainders():
    assert apportion([5.4, 3.5, 1.1], 10).tolist() == [5, 4, 1]
    assert apportion([1, 1, 1], 10).tolist() == [4, 3, 3]


def test_a_weight_too_small_for_a_slot_is_refused():
    with pytest.raises(UserError) as caught:
        apportion([9999, 1], SLOTS)
    assert str(caught.value) == (
        "the weight 1 of a source is less than 1/4096 of all weights (10000); raise it, or leave "
        "that source out")
    assert apportion([4095, 1], SLOTS).tolist() == [4095, 1]


def test_shares_are_exact_in_every_block():
    mixed = mixture()
    shares = [Counter(mixed.places(np.arange(b * SLOTS, (b + 1) * SLOTS))[0].tolist())
              for b in range(4)]
    assert apportion(WEIGHTS, SLOTS).tolist() == [2048, 1229, 819]
    assert shares == [{0: 2048, 1: 1229, 2: 819}] * 4
    part = Counter(mixed.places(np.arange(SLOTS // 2))[0].tolist())
    assert part != {0: 1024, 1: 614, 2: 410}  # inside a block the order is random


def test_the_sequences_of_each_source_are_used_without_a_gap():
    sources, places = mixture().places(np.arange(3 * SLOTS))
    for source, slots in enumerate((2048, 1229, 819)):
        assert sorted(places[sources == source].tolist()) == list(range(3 * slots))


def test_every_source_is_read_whole_in_each_of_its_epochs():
    mixed = mixture()
    indices = np.arange(3 * SLOTS)
    sources, places = mixed.places(indices)
    rows = mixed.read(indices).inputs[:, 0].numpy()
    for source, size in enumerate(SIZES):
        of_source = rows[sources == source][np.argsort(places[sources == source])]
        epochs = of_source[:len(of_source) // size * size].reshape(-1, size)
        everything = 10_000 * source + 8 * np.arange(size)
        assert len(epochs) > 1 and all(np.array_equal(np.sort(e), everything) for e in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_blocks_and_sources_and_seeds_have_orders_of_their_own():
    indices = np.arange(SLOTS)
    first, second = mixture().places(indices)[0], mixture().places(indices + SLOTS)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, mixture().places(indices)[0])
    assert not np.array_equal(first, mixture(seed=2).places(indices)[0])
    twins = Mixture([Windows(tokenized(np.arange(801)), 8) for _ in range(2)], (1, 1), 1)
    sources, places = twins.places(indices)
    rows = twins.read(indices).inputs[:, 0].numpy()
    orders = [rows[sources == s][np.argsort(places[sources == s])].tolist() for s in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("batch_size", "micro_batch_size", "ranks"), [
    (1, 1, 1), (24, 5, 1), (12, 12, 2), (8, 3, 3), (4, 1, 4), (6, 6, 8)])
def test_a_mixture_is_the_same_for_any_batch_and_any_number_of_ranks(batch_size, micro_batch_size,
                                                                     ranks):
    mixed = mixture()
    whole = mixed.read(np.arange(24)).inputs[:, 0].tolist()
    found = []
    for step in range(24 // batch_size):
        for rank in range(ranks):
            batches = Batches(mixed, Order(batch_size, micro_batch_size, rank, ranks))
            found += firsts(batches, range(step, step + 1))
    assert found == whole
    assert len({first // 10_000 for first in found}) == 3


def test_an_index_in_the_far_future_is_placed_at_once():
    sources, places = mixture().places(np.array([10**12, 10**12 + 1]))
    assert places.tolist() == pytest.approx(10**12 * np.array(WEIGHTS)[sources], rel=0.01)


def test_the_length_of_a_mixture_is_that_of_its_sources():
    mixed = mixture()
    assert mixed.sequences_per_epoch == sum(SIZES)
    assert mixed.tokens_per_sequence == pytest.approx(8)


def test_a_mixture_of_document_rows_counts_tokens_and_keeps_segments():
    sources = [DocumentRows(tokenized([1, 2, END, 3, END]), 8, isolate=True),
               DocumentRows(tokenized([4] * 7 + [END]), 8, isolate=True)]
    mixed = Mixture(sources, (3, 1), 0)
    assert mixed.tokens_per_sequence == pytest.approx((3 * 5 + 8) / 4)
    batch = mixed.read(np.arange(SLOTS))
    assert batch.tokens == SLOTS * 23 // 4 == batch.supervised_tokens
    for row, segments in zip(batch.inputs[:20].tolist(), batch.segments[:20].tolist(), strict=True):
        assert segments == np.cumsum(np.array(row) == END).tolist()


class Lines:
    """Sequences of one width, each of its own number."""

    def __init__(self, width: int, first: int, **others: np.ndarray):
        self.width, self.first, self.others = width, first, others
        self.tokens_per_sequence = float(width)

    def __len__(self) -> int:
        return 6

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), self.width)

    def read(self, numbers: np.ndarray) -> MicroBatch:
        inputs = np.repeat(self.first + numbers[:, None], self.width, axis=1)
        given = {name: np.tile(row, (len(numbers), 1)) for name, row in self.others.items()}
        return MicroBatch.of(inputs, inputs.copy(), **given)


def test_sequences_of_two_widths_are_padded_and_keep_what_belongs_to_them():
    packed = Lines(3, 100, begins=np.array([True, False, True]),
                   prompts=np.array([True, False, False]))
    batch = Mixture([packed, Lines(5, 200)], [1, 1], seed=0).read(np.arange(8))
    assert batch.inputs.shape == (8, 5) and batch.prompts.dtype == torch.bool
    assert batch.tokens == int((batch.targets != IGNORE).sum())
    sources = (batch.inputs[:, 0] // 100).tolist()
    assert set(sources) == {1, 2}
    for source, targets, segments, prompts in zip(sources, batch.targets, batch.segments,
                                                  batch.prompts, strict=True):
        if source == 1:
            assert (targets[3:] == IGNORE).all() and (targets[:3] >= 100).all()
            assert segments[:3].tolist() == [1, 1, 2] and (segments[3:] > 2).all()
            assert prompts.tolist() == [True] + [False] * 4
        else:
            assert (targets >= 200).all() and not segments.any() and not prompts.any()
