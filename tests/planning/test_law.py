"""The law: what it learns of texts, and what it foretells of another one."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.planning.law import Forecast, Law, Run, Shape, Text, known_texts, worth

TRUE = Shape(ratio=0.2, gamma=1.0, patience=2.0, floor=0.1)
GRID = [(0.3e6, 0.25e6), (0.3e6, 1e6), (1.2e6, 0.25e6), (1.2e6, 1e6), (1.2e6, 4e6), (3e6, 1e6)]


def loss_of(run, entropy, c, beta):
    """The formula at the head of law.py, written once more."""
    d = 1 / (1e6 / worth(run.tokens, run.epoch, TRUE.patience)
             + TRUE.ratio * (run.parameters / 1e6) ** -TRUE.gamma)
    floor = TRUE.floor * entropy
    return floor + (entropy - floor) / (1 + (d / c) ** beta)


def text_of(draw, noise=0.01, grid=GRID):
    """A text with numbers of its own, and some noisy runs: (Text, what a run gives)"""
    entropy, c, beta = draw.uniform(3, 7), draw.uniform(0.5, 3), draw.uniform(0.35, 0.5)
    epoch = draw.uniform(0.5e6, 8e6)

    def ran(parameters, tokens):
        run = Run(parameters, tokens, epoch)
        return run._replace(loss=loss_of(run, entropy, c, beta) + noise * draw.normal())

    return Text(entropy, [ran(*each) for each in grid]), ran


def test_text_read_again_is_worth_less_each_time():
    assert worth(5, 10, 2.0) == 5 and worth(10, 10, 2.0) == 10
    values = [worth(10 * epochs, 10, 2.0) for epochs in range(1, 60)]
    gains = np.diff(values)
    assert (gains > 0).all() and (np.diff(gains) < 0).all() and gains[0] < 10
    assert values[-1] == pytest.approx(10 + 10 * 2, rel=1e-6)  # of new text, and two epochs' worth
    assert worth(20, 10, 2.0) == pytest.approx(10 + 20 * (1 - np.exp(-0.5)))


def test_a_text_of_the_same_kind_is_foretold_and_intervals_hold_what_comes():
    draw = np.random.default_rng(0)
    inside, errors = 0, []
    for _ in range(15):
        law = Law([text_of(draw)[0] for _ in range(4)])
        tried, ran = text_of(draw, grid=[(1.2e6, 0.25e6), (1.2e6, 0.5e6), (1.2e6, 1e6)])
        forecast, came = law.of(tried).forecast(ran(1.2e6, 4e6)), ran(1.2e6, 4e6).loss
        inside += forecast.low <= came <= forecast.high
        errors.append(abs(forecast.loss - came))
    assert inside >= 13 and np.median(errors) < 0.06


def test_short_runs_make_a_forecast_surer_and_distance_makes_it_less_sure():
    draw = np.random.default_rng(1)
    law = Law([text_of(draw)[0] for _ in range(4)])
    tried, ran = text_of(draw, grid=[(1.2e6, 0.25e6), (1.2e6, 0.5e6), (1.2e6, 1e6)])

    def width(runs, *run):
        forecast = law.of(Text(tried.entropy, runs)).forecast(ran(*run))
        return forecast.high - forecast.low

    widths = [width(tried.runs[:count], 1.2e6, 4e6) for count in range(4)]
    assert widths[0] > widths[1] > 0.9 * widths[2] and widths[3] < 0.7 * widths[0]
    near, far = width(tried.runs, 1.2e6, 1e6), width(tried.runs, 1e9, 1e10)
    assert near < widths[3] < far


def test_a_law_is_the_same_in_other_units_and_never_below_nothing():
    assert Forecast(2.0, 1.0, 4.0).times(0.5) == Forecast(1.0, 0.5, 2.0)
    assert str(Forecast(2.0, 1.0, 4.0)) == "2.000 (1.000 to 4.000)"
    law = Law(list(known_texts().values()))
    own = law.of(Text(6.0, []))
    far = own.forecast(Run(1e12, 1e13, 1e14))
    assert 0 <= far.low < far.loss < far.high
    losses = [own.forecast(Run(1e6, tokens, 1e9)).loss for tokens in (1e5, 1e6, 1e7, 1e8)]
    assert losses == sorted(losses, reverse=True) and losses[0] < 6.0


def test_a_bend_that_all_texts_have_is_learned_and_foretold():
    draw = np.random.default_rng(2)
    grid = [(1.2e6, tokens) for tokens in (0.25e6, 0.5e6, 1e6, 2e6, 4e6)]

    def bent():
        text, _ = text_of(draw, noise=0.002, grid=grid)
        runs = []
        for run in text.runs:
            left = (run.loss / text.entropy - TRUE.floor) / (1 - TRUE.floor)
            z = np.log(1 / left - 1) + (0.3 if run.tokens > 3e6 else 0.0)
            share = TRUE.floor + (1 - TRUE.floor) / (1 + np.exp(z))
            runs.append(run._replace(loss=share * text.entropy))
        return Text(text.entropy, runs)

    law = Law([bent() for _ in range(8)])
    errors = []
    for _ in range(10):
        text = bent()
        *shorter, longest = text.runs
        forecast = law.of(Text(text.entropy, shorter)).forecast(longest)
        errors.append(forecast.loss - longest.loss)
    assert abs(np.mean(errors)) < 0.03


def test_intervals_are_as_wide_as_the_texts_that_are_left_out_ask_for():
    draw = np.random.default_rng(3)
    texts = [text_of(draw)[0] for _ in range(5)]
    odd = texts[0].runs
    surprising = [Text(texts[0].entropy, [run if run.tokens < 3e6 else
                                          run._replace(loss=run.loss - 0.8) for run in odd])]
    run = Run(1.2e6, 4e6, 1e6)

    def width(law):
        forecast = law.of(Text(5.0, [])).forecast(run)
        return forecast.high - forecast.low

    assert width(Law.calibrated(texts)) < 1.5 * width(Law(texts))
    assert width(Law.calibrated(surprising + texts[1:])) > 1.5 * width(Law(surprising + texts[1:]))


@pytest.mark.parametrize("name", known_texts())
def test_what_is_committed_foretells_each_of_its_texts_from_the_others(name):
    """The longest run of the size in the middle, from those of a quarter of its tokens at most."""
    texts = known_texts()
    text = texts[name]
    middle = sorted({run.parameters for run in text.runs})[1]
    *shorter, longest = sorted(run for run in text.runs if run.parameters == middle)
    short = [run for run in shorter if run.tokens < 0.3 * longest.tokens]
    own = Law.calibrated([other for each, other in texts.items() if each != name]).of(
        Text(text.entropy, short))
    forecast = own.forecast(longest)
    assert len(short) == 3
    assert forecast.low < longest.loss < forecast.high
