"""Columns in few points, and numbers as a page has them."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.reports.chart import Thinned, plain, spread_evenly


def test_a_stretch_is_what_is_known_of_it():
    nan = np.nan
    column = np.array([1.0, nan, 5.0, nan, nan, nan, 2.0, 4.0, np.inf, 7.0])
    thinned = Thinned({"x": column}, most=3)  # 3, 3 and 4 of them
    np.testing.assert_array_equal(thinned.mean(column), [3.0, nan, 13 / 3])
    np.testing.assert_array_equal(thinned.low(column), [1.0, nan, 2.0])
    np.testing.assert_array_equal(thinned.high(column)[:2], [5.0, nan])
    assert thinned.ends(np.arange(10)).tolist() == [2, 5, 9] and not thinned.whole


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_what_is_short_is_left_as_it_is(rows):
    column = np.arange(rows) + 0.5
    thinned = Thinned({"x": column}, most=3)
    assert thinned.whole
    for found in (thinned.mean(column), thinned.low(column), thinned.ends(column)):
        np.testing.assert_array_equal(found, column)


def test_numbers_are_short_and_what_is_none_is_null():
    assert plain(np.array([1.0, 1234567.25, 0.123456789, np.nan, np.inf, 1e300])) == [
        1, 1234570.0, 0.123457, None, None, 1e300]
    assert plain(np.array([2**53 + 1])) == [2**53 + 1] and plain(None) is None


def test_some_of_many_are_spread_evenly_and_the_ends_are_among_them():
    assert spread_evenly(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread_evenly("abc", 3) == ["a", "b", "c"] and spread_evenly([], 4) == []
