"""The bootstrap, held against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.evaluation import Units, interval
from gpt.evaluation import intervals as module


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = interval(values, np.ones(400))
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_95_of_100_intervals_hold_the_true_figure():
    generator, inside = np.random.default_rng(2), 0
    for _ in range(200):
        sizes = generator.integers(1, 50, 60).astype(float)
        found = interval(sizes * generator.normal(3.0, 1.0, 60), sizes)
        inside += found.low <= 3.0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_a_figure_is_a_ratio_of_sums_so_long_documents_weigh_more():
    parts, wholes = np.array([1.0, 1000.0] * 30), np.array([1.0, 100.0] * 30)
    found = interval(parts, wholes)
    assert 9.5 < found.low < found.high < 10.0  # not the 5.5 of documents that weigh alike


def test_paired_differences_are_known_far_better_than_the_figures_themselves():
    generator = np.random.default_rng(3)
    hard = generator.normal(5, 2, 300)
    better = hard - 0.1 + generator.normal(0, 0.05, 300)
    apart, ones = interval(hard, np.ones(300)), np.ones(300)
    paired = interval(better - hard, ones)
    assert paired.high < 0 and paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_draws_are_the_same_each_time_and_of_units_of_any_number(monkeypatch):
    values = np.random.default_rng(4).normal(0, 1, 1000)
    found = interval(values, np.ones(1000))
    assert interval(values, np.ones(1000)) == found
    monkeypatch.setattr(module, "MOST_UNITS", 100)
    together = interval(values, np.ones(1000))
    assert together != found
    assert together.high - together.low == pytest.approx(found.high - found.low, rel=0.3)
    assert interval(values[:1], np.ones(1)) is None


def test_units_are_documents_where_there_are_enough_of_them():
    documents = np.repeat(np.arange(12), 5)
    units = Units.of_text(documents, np.ones(60, dtype=np.int64))
    assert (units.what, units.count) == ("documents", 12)
    assert units.sums(np.arange(60.0)).tolist() == [sum(range(i, i + 5)) for i in range(0, 60, 5)]


def test_a_text_of_few_documents_is_cut_alike_whatever_tokens_it_is_written_in():
    fine = Units.of_text(np.zeros(20_000, dtype=np.int64), np.ones(20_000, dtype=np.int64))
    coarse = Units.of_text(np.zeros(5000, dtype=np.int64), np.full(5000, 4))
    assert fine.count == coarse.count == 5 and fine.what == "blocks of 4,096 bytes"
    assert fine.sums(np.ones(20_000)).tolist() == [4096] * 4 + [20_000 - 4 * 4096]
    assert coarse.sums(np.full(5000, 4.0)).tolist() == [4096] * 4 + [20_000 - 4 * 4096]
