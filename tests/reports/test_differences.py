"""What runs differ in, and how certain that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt.reports import differences
from gpt.runs.history import History, read_history
from tests.written_runs import evaluation, step, write_run


def run_of(losses, tokens_per_step=512):
    """A run with these losses in memory."""
    steps = np.arange(1, len(losses) + 1)
    return History(Path("x"), {"step": steps, "tokens": steps * float(tokens_per_step),
                         "loss": np.asarray(losses, dtype=np.float32)})


def noise(seed, size, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=size)


def test_what_both_read_alike_cancels_out_where_steps_are_paired():
    shared = noise(0, 1000)
    found = differences.at_the_end(run_of(shared + 0.05 + noise(1, 1000, 0.01)), run_of(shared))
    assert found.paired and found.steps == 100
    assert found.low < 0.05 < found.high and found.high - found.low < 0.01
    apart = differences.at_the_end(run_of(shared + 0.05, 500), run_of(shared))
    assert not apart.paired and apart.high - apart.low > 0.2  # the noise of 100 steps, twice


@pytest.mark.parametrize("tokens_per_step", [512, 640])  # paired, or not
def test_the_interval_covers_the_truth_about_as_often_as_it_says(tokens_per_step):
    covered = 0
    for seed in range(200):
        found = differences.at_the_end(run_of(0.1 + noise(2 * seed, 1000), tokens_per_step),
                                       run_of(noise(2 * seed + 1, 1000)))
        covered += found.low <= 0.1 <= found.high
    # Of 190 in the mean; a bootstrap over 40 to 50 blocks is a little narrow: 3 standard errors.
    assert 172 <= covered < 200


def test_neighbours_that_are_alike_make_the_interval_wider():
    alike = np.repeat(noise(3, 100), 10)  # tens of them: √10 times as wide
    scattered = np.random.default_rng(0).permutation(alike)
    before = np.zeros(9000)
    widths = [found.high - found.low for found in (
        differences.at_the_end(run_of(np.append(before, losses)), run_of(np.zeros(10_000)))
        for losses in (alike, scattered))]
    assert widths[0] > 2 * widths[1]


def test_the_mean_is_over_the_last_tenth_that_both_have_read():
    longer, shorter = np.arange(2000.0), np.zeros(1000)
    found = differences.at_the_end(run_of(longer), run_of(shorter))
    assert found.mean == pytest.approx(np.arange(900, 1000).mean()) and found.steps == 100


def test_runs_too_short_or_without_losses_have_no_interval():
    assert differences.at_the_end(run_of(np.ones(190)), run_of(np.ones(190))) is None
    assert differences.at_the_end(run_of(np.ones(200)), run_of(np.ones(200))).mean == 0
    assert differences.at_the_end(History(Path("x")), run_of(np.ones(200))) is None
    assert differences.along(History(Path("x")), run_of(np.ones(200))) == []


def test_along_the_run_each_stretch_has_its_own_difference():
    losses = np.concatenate([np.full(500, 1.0), np.full(500, 3.0)])
    found = differences.along(run_of(losses), run_of(np.ones(1000)))
    assert len(found) == 25 and sum(each.steps for _, each in found) == 1000
    assert [each.mean for at, each in found] == [0] * 12 + [1] + [2] * 12
    longer = differences.along(run_of(np.tile(losses, 3)), run_of(np.ones(3000)))
    assert len(longer) == differences.PLACES


def test_runs_of_other_data_are_not_paired_and_of_other_tokenizers_not_compared():
    alike = noise(0, 1000)
    runs = [run_of(alike) for _ in range(4)]
    for run, changes in zip(runs, ({}, {"run.seed": 2}, {"data": "b"}, {"tokenizer": "c"}),
                            strict=True):
        run.identity = {"run.seed": 1, "data": "a", "tokenizer": "a"} | changes
        run.evaluations = [evaluation(100)]
    pairs = [differences.at_the_end(run, runs[0]) for run in runs]
    assert [pair and pair.paired for pair in pairs] == [True, False, False, None]
    assert pairs[0].high == 0 < pairs[1].high
    assert [differences.validation(run, runs[0]) for run in runs] == [
        (100, 0.0), (100, 0.0), None, None]


def test_a_last_step_without_tokens_ends_before():
    run = run_of(np.ones(1000))
    run.steps["tokens"] = np.append(run.steps["tokens"][:-1], np.nan)
    assert differences.at_the_end(run, run_of(np.zeros(1000))).mean == 1


def test_losses_that_are_not_finite_are_left_out():
    losses = np.ones(1000)
    losses[950] = np.nan
    found = differences.at_the_end(run_of(losses), run_of(np.zeros(1000)))
    assert found.mean == 1 and found.steps == 99 and not found.paired


def test_validation_is_compared_where_both_were_scored(tmp_path):
    runs = [read_history(write_run(tmp_path / name, lines)) for name, lines in (
        ("a", [evaluation(100), evaluation(200, val_loss=2.0), evaluation(300)]),
        ("b", [evaluation(100), evaluation(200, val_loss=1.5), evaluation(400)]),
        ("c", [step(1)]))]
    assert differences.validation(runs[1], runs[0]) == (200, -0.5)
    assert differences.validation(runs[2], runs[0]) is None


def test_settings_that_differ_are_told_with_each_runs_value(tmp_path):
    configs = [{"run": {"name": str(n)}, "train": {"batch_size": 8}, "optim": optim}
               for n, optim in enumerate(({"lr": 0.1}, {"lr": 0.2, "beta1": 0.9}))]
    runs = [read_history(write_run(tmp_path / str(n), config=config))
            for n, config in enumerate(configs)]
    assert differences.settings(runs) == [["optim.lr", 0.1, 0.2], ["optim.beta1", "–", 0.9]]
