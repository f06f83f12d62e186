"""Columns in few points, and numbers as a page has them."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.reports import write_pictures
from gpt.reports.chart import Chart, Series, Thinned, plain, spread_evenly


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


def test_pictures_have_the_charts_numbers(tmp_path, monkeypatch):
    from matplotlib import pyplot
    figures, x = [], {"steps": np.array([1.0, 2.0, 4.0]), "tokens": np.array([5.0, 6.0, 7.0])}
    monkeypatch.setattr(pyplot, "close", figures.append)
    y, low, high = np.array([1.0, np.nan, 3.0]), np.zeros(3), np.full(3, 9.0)
    lines = [Series("line", x, y, low, high), Series("dots", x, y, kind="points"),
             Series("behind", x, y, faint=True)]
    charts = [Chart("A: b", "nats", lines, begins_log=True),
              Chart("Bars", "of so many", [Series("bars", x, high, kind="bars")], log_x=True)]
    assert [path.name for path in write_pictures(charts, tmp_path / "new")] == ["a-b.png",
                                                                               "bars.png"]
    (drawn,), (bars,) = (figure.axes for figure in figures)
    assert [line.get_marker() for line in drawn.lines] == ["None", "o", "None"]
    assert [line.get_alpha() for line in drawn.lines] == [1.0, 1.0, 0.3]
    for line in drawn.lines:
        np.testing.assert_array_equal(line.get_xydata(), np.stack([x["steps"], y], axis=1))
    assert drawn.get_yscale() == "log" and drawn.get_ylabel() == "nats"
    assert drawn.get_xlabel() == "steps" and len(drawn.collections) == 1
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars.patches] == [
        (1.0, 9.0), (2.0, 9.0)]
    assert bars.get_xscale() == "log"
