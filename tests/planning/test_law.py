"""The law: what it learns of texts, and what it foretells of another one."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.planning.law import Forecast, Law, Run, Shape, Text, by_heart, known_texts

TRUE = Shape(ratio=0.2, gamma=1.0, price=0.0045, floor=0.1)
GRID = [(0.3e6, 0.25e6), (0.3e6, 1e6), (1.2e6, 0.25e6), (1.2e6, 1e6), (1.2e6, 4e6), (3e6, 1e6)]


def beside_of(run, entropy, c, beta):
    """The formula at the head of law.py without R, written once more."""
    d = 1 / (1e6 / run.tokens + TRUE.ratio * (run.parameters / 1e6) ** -TRUE.gamma)
    floor = TRUE.floor * entropy
    return (floor + (entropy - floor) / (1 + (d / c) ** beta)
            + entropy * by_heart(run, TRUE.price))


def usual_left(tokens):
    """What there is to copy, as a share of the entropy: little is left from four million on."""
    return 0.08 / (1 + (tokens / 3e6) ** 2)


def text_of(draw, noise=0.01, grid=GRID, left=usual_left):
    """A text with numbers of its own, and some noisy runs: (Text, what a run gives)"""
    entropy, c, beta = draw.uniform(3, 7), draw.uniform(0.5, 3), draw.uniform(0.35, 0.5)
    epoch = draw.uniform(0.5e6, 8e6)

    def ran(parameters, tokens):
        run = Run(parameters, tokens, epoch)
        beside = beside_of(run, entropy, c, beta) + noise * draw.normal()
        return run._replace(loss=beside + entropy * left(tokens), beside=beside)

    return Text(entropy, tuple(ran(*each) for each in grid)), ran


def test_nothing_is_lost_by_reading_once_and_more_each_time_and_with_each_parameter():
    def lost(parameters, epochs):
        return by_heart(Run(parameters, epochs * 1e6, 1e6), 0.03)

    assert lost(1e9, 1.0) == lost(1e9, 0.1) == 0
    losses = [lost(1e6, epochs) for epochs in range(1, 30)]
    assert (np.diff(losses) > 0).all() and (np.diff(losses, 2)[:4] > 0).all()
    assert lost(1e6, 2) == pytest.approx(0.03, rel=0.02)
    assert lost(2e6, 5) == lost(1e6, 9) == pytest.approx(1 - np.exp(-0.03 * 8**1.5))
    assert lost(1e12, 1e4) == 1


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
    own = law.of(Text(6.0, ()))
    far = own.forecast(Run(1e12, 1e13, 1e14))
    assert 0 <= far.low < far.loss < far.high
    losses = [own.forecast(Run(1e6, tokens, 1e9)).loss for tokens in (1e5, 1e6, 1e7, 1e8)]
    assert losses == sorted(losses, reverse=True) and losses[0] < 6.0


def test_models_that_learn_to_copy_late_or_early_are_foretold_from_before():
    """Where the loss falls all at once, what is left to copy tells whether it has."""
    draw = np.random.default_rng(2)
    grid = [(1.2e6, tokens) for tokens in (0.5e6, 1e6, 2e6, 4e6, 8e6)]

    def learned(when):
        return text_of(draw, 0.002, grid, lambda tokens: 0.08 if tokens < when else 0.01)[0]

    law = Law([learned(when) for when in (3e6, 3e6, 6e6, 6e6)])
    errors, straight = [], []
    for when in (3e6, 6e6) * 4:
        text = learned(when)
        first, half, last = text.runs[1], text.runs[3], text.runs[4]
        forecast = law.of(Text(text.entropy, (first, half))).forecast(last)
        errors.append(abs(forecast.loss - last.loss))
        straight.append(abs(half.loss - (first.loss - half.loss) / 2 - last.loss))
    assert np.median(errors) < 0.05 and np.median(straight) > 0.15


def test_what_is_left_to_copy_is_that_of_other_texts_unless_a_run_says_otherwise():
    draw = np.random.default_rng(4)
    law = Law([text_of(draw)[0] for _ in range(4)])
    odd, ran = text_of(draw, grid=[(1.2e6, 1e6)], left=lambda tokens: 3 * usual_left(tokens))

    def left(tried, tokens):
        run = ran(1.2e6, tokens)
        return law._copying.left(run, Text(odd.entropy, tried))[0] / odd.entropy

    assert left((), 1e6) == pytest.approx(usual_left(1e6), rel=0.05)
    assert left(odd.runs, 1e6) == pytest.approx(3 * usual_left(1e6), rel=0.05)
    assert left(odd.runs, 4e6) == pytest.approx(3 ** 0.25 * usual_left(4e6), rel=0.1)
    assert left((), 1e12) == left((), 4e6)  # further than that nothing was seen


def test_intervals_are_as_wide_as_the_texts_that_are_left_out_ask_for():
    draw = np.random.default_rng(5)
    texts = [text_of(draw)[0] for _ in range(5)]
    odd = texts[0].runs
    surprising = [Text(texts[0].entropy, tuple(
        run if run.tokens < 3e6 else run._replace(loss=run.loss - 0.8, beside=run.beside - 0.8)
        for run in odd))]
    run = Run(1.2e6, 4e6, 1e6)

    def width(law):
        forecast = law.of(Text(5.0, ())).forecast(run)
        return forecast.high - forecast.low

    assert width(Law.calibrated(texts)) < 1.5 * width(Law(texts))
    assert width(Law.calibrated(surprising + texts[1:])) > 1.5 * width(Law(surprising + texts[1:]))


@pytest.mark.parametrize("name", known_texts())
def test_what_is_committed_foretells_each_of_its_texts_from_the_others(name):
    """The longest run, from those of the same size with a quarter of its tokens at most."""
    texts = known_texts()
    text = texts[name]
    longest = max(text.runs, key=lambda run: run.tokens)
    shorter = [run for run in text.runs if run.parameters == longest.parameters]
    short = tuple(run for run in shorter if run.tokens < 0.3 * longest.tokens)
    own = Law.calibrated([other for each, other in texts.items() if each != name]).of(
        Text(text.entropy, short))
    forecast = own.forecast(longest)
    assert len(short) == 3
    assert forecast.low < longest.loss < forecast.high
