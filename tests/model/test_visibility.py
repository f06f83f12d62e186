"""What a query may read, against the definition: a loop over all pairs of query and key."""

from __future__ import annotations

import itertools

import pytest
import torch

from gpt.model.visibility import positions_within, visible_keys, visible_within, within_reach

CPU = torch.device("cpu")
LENGTHS = [(T, length) for length in range(1, 9) for T in range(1, length + 1)]
WINDOWS = [None, *range(1, 11)]


def reads(query: int, key: int, window: int | None) -> bool:
    """Mistral's definition: itself and the window - 1 tokens before it."""
    return key <= query and (window is None or query - key < window)


def test_the_loop_is_the_definition():
    assert [key for key in range(9) if reads(6, key, None)] == [0, 1, 2, 3, 4, 5, 6]
    assert [key for key in range(9) if reads(6, key, 3)] == [4, 5, 6]
    assert [key for key in range(9) if reads(1, key, 3)] == [0, 1]


@pytest.mark.parametrize("window", WINDOWS)
def test_within_reach_are_the_keys_that_any_query_reads(window):
    for T, length in LENGTHS:
        queries = range(length - T, length)
        keys = {key for query in queries for key in range(length) if reads(query, key, window)}
        assert within_reach(length, T, window) == len(keys)
        assert keys == set(range(length - len(keys), length))  # the last ones, without a gap


@pytest.mark.parametrize("window", WINDOWS)
def test_a_mask_is_the_loop_and_none_stands_for_what_attention_does_by_itself(window):
    for T, length in LENGTHS:
        S = within_reach(length, T, window)
        expected = torch.tensor([[reads(query, key, window) for key in range(length - S, length)]
                                 for query in range(length - T, length)])
        by_itself = torch.ones(T, S, dtype=torch.bool)  # one query reads all that it is given;
        if T > 1:                                       # more are causal from the first key on
            by_itself = by_itself.tril()
        mask = visible_keys(T, length, window, CPU)
        assert torch.equal(by_itself if mask is None else mask, expected)
        assert (mask is None) == torch.equal(by_itself, expected)  # fast kernels where possible


SEGMENTS = [torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            for count in (1, 2, 3) for lengths in itertools.product(range(1, 5), repeat=count)]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 20])
def test_documents_side_by_side_read_themselves_within_the_window(window):
    for segments in SEGMENTS:
        T = len(segments)
        numbers = torch.stack((segments + 7, torch.zeros_like(segments)))  # another row, one text
        visible = visible_within(numbers, window)
        assert visible.shape == (2, 1, T, T) and visible.dtype == torch.bool
        for row, same in ((0, segments.tolist()), (1, [0] * T)):
            expected = [[same[q] == same[k] and reads(q, k, window) for k in range(T)]
                        for q in range(T)]
            assert visible[row, 0].tolist() == expected


def test_positions_are_counted_from_each_documents_first_token():
    for segments in SEGMENTS:
        numbers = segments.tolist()
        expected = [i - numbers.index(number) for i, number in enumerate(numbers)]
        both = torch.stack((segments + 7, torch.zeros_like(segments)))
        assert positions_within(both).tolist() == [expected, list(range(len(numbers)))]


def test_masks_stand_on_the_device_they_are_asked_for():
    meta = torch.device("meta")
    assert visible_keys(2, 5, 3, meta).device == meta
    assert visible_within(torch.zeros(1, 4, dtype=torch.int64, device=meta), 2).device == meta
