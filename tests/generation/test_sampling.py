"""Every filter does what its name says, and draws follow what the filters leave."""

from __future__ import annotations

import pytest
import torch

from gpt.configuration import SamplingConfig, sampling_config
from gpt.errors import UserError
from gpt.generation.sampling import choose, filtered_logits, log_probabilities

LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0, 0.0])


def filtered(logits: torch.Tensor = LOGITS, **settings) -> torch.Tensor:
    return filtered_logits(logits.unsqueeze(0), SamplingConfig(**settings))[0]


def kept(logits: torch.Tensor = LOGITS, **settings) -> list[int]:
    return (filtered(logits, **settings) > -torch.inf).nonzero().flatten().tolist()


def test_top_k_keeps_exactly_the_k_likeliest_even_among_equals():
    assert kept(top_k=2) == [1, 2]
    assert kept(top_k=100) == [0, 1, 2, 3, 4]
    assert len(kept(torch.zeros(6), top_k=2)) == 2


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    probabilities = LOGITS.softmax(0).sort(descending=True).values
    p = float(probabilities[:2].sum())
    assert kept(top_p=p - 1e-4) == [1, 2]
    assert kept(top_p=p + 1e-4) == [0, 1, 2]
    assert kept(top_p=1e-9) == [1]
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_top_p_of_many_tokens_is_what_sorting_all_of_them_says(p, spread):
    """More tokens than are looked at first, with distributions flat and steep."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * spread
    ordered, tokens = logits.double().softmax(0).sort(descending=True)
    count = int((ordered.cumsum(0) < p).sum()) + 1
    found = kept(logits, top_p=p)
    assert abs(len(found) - count) <= (1 if count > 1000 else 0)  # float32 sums near p
    assert set(found) <= set(tokens[:count + 1].tolist())


def test_min_p_keeps_tokens_relative_to_the_likeliest():
    ratio = float(torch.tensor(1.0 - 2.0).exp())  # of the second to the first
    assert kept(min_p=ratio - 1e-4) == [1, 2]
    assert kept(min_p=ratio + 1e-4) == [1]


def test_temperature_sharpens_and_flattens():
    cold, plain, hot = (filtered(temperature=t).softmax(0)[1] for t in (0.5, 1.0, 2.0))
    assert cold > plain > hot
    assert filtered(temperature=1e-4).softmax(0).tolist() == [0, 1, 0, 0, 0]


def test_filters_come_in_the_order_temperature_top_k_top_p_min_p():
    """Each pair the other way round would keep other tokens."""
    assert kept(temperature=0.25, top_p=0.95) == [1]  # before: 0.95 of the plain distribution
    assert kept(top_p=0.95) == [0, 1, 2, 4]
    assert kept(top_k=2, top_p=0.7) == [1]  # of two, the first has 0.73
    assert kept(top_p=0.7) == [1, 2]


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 1.5},
    {"top_k": 3, "top_p": 0.9, "min_p": 0.1}], ids=str)
def test_draws_follow_the_filtered_distribution(settings):
    config, draws = SamplingConfig(**settings), 4_000
    expected = filtered(**settings).softmax(0)
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = choose(LOGITS.expand(draws, -1), config, uniforms).bincount(minlength=5)
    assert not counts[expected == 0].any()
    # Chi-squared with up to 4 degrees of freedom: above 18.5 one time in a thousand.
    drawn = expected > 0
    chi2 = ((counts - draws * expected)[drawn] ** 2 / (draws * expected[drawn])).sum()
    assert chi2 < 18.5


def test_a_draw_is_where_the_cumulative_probability_passes_the_number():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    for uniform, token in ((0.0, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.7501, 3),
                           (1 - 2**-53, 3)):
        drawn = choose(logits, SamplingConfig(), torch.tensor([uniform], dtype=torch.float64))
        assert drawn.item() == token


def test_a_row_is_drawn_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 700, generator=generator) * 3
    uniforms = torch.rand(64, dtype=torch.float64, generator=generator)
    for settings in ({}, {"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.999}, {"min_p": 0.05},
                     {"temperature": 0}):
        config = SamplingConfig(**settings)
        together = choose(logits, config, uniforms)
        assert together.tolist() == [int(choose(logits[i:i + 1], config, uniforms[i:i + 1]))
                                     for i in range(64)]


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"), ({"top_k": -1}, "top_k"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"min_p": -0.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty"), ({"seed": -1}, "seed"),
    ({"logit_bias": {-1: 2.0}}, "logit_bias"), ({"banned_tokens": [-5]}, "banned_tokens"),
    ({"json_schema": "{"}, "json_schema: this is no json"), ({"json_schema": "3"}, "json_schema"),
    ({"topk": 4}, "there is no setting topk"), ({"beams": 0}, "beams"),
    ({"beams": 2, "temperature": 0.5}, "leave out temperature")])
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        sampling_config(**settings)


@pytest.mark.parametrize("settings", [
    {"min_new_tokens": 3, "max_new_tokens": 3}, {"json_schema": "true"}, {"min_p": 1.0},
    {"beams": 2, "temperature": 1.0, "seed": None}, {"seed": 2**63 - 1}], ids=str)
def test_what_is_just_allowed_is_no_error(settings):
    assert sampling_config(**settings) == SamplingConfig(**settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"json_schema": "[" * 100_000}, "json_schema: this is no json"),
    ({"presence_penalty": 101}, "presence_penalty"), ({"seed": 2**63}, "seed"),
    ({"json_schema": "{}", "min_new_tokens": 1}, "say where a text may end")])
def test_what_is_just_not_allowed_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        sampling_config(**settings)


def test_without_settings_256_tokens_come_from_the_models_own_distribution():
    assert SamplingConfig().max_new_tokens == 256
    assert torch.allclose(filtered().softmax(0), LOGITS.softmax(0))


def test_min_p_of_one_keeps_the_likeliest_and_its_equals():
    assert kept(min_p=1.0) == [1]
    assert kept(torch.tensor([1.0, 0.0, 1.0]), min_p=1.0) == [0, 2]


def test_min_p_comes_after_temperature_and_top_p():
    assert kept(min_p=0.3) == [1, 2] and kept(min_p=0.3, temperature=0.25) == [1]
    assert kept(min_p=0.3, top_p=0.72) == [1, 2]  # of those two alone, the first has 0.73


def test_a_tiny_temperature_makes_no_score_infinite():
    assert filtered(torch.tensor([1e36, 0.0]), temperature=1e-4).softmax(0).tolist() == [1, 0]


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_the_largest_number_draws_a_token_that_is_left_however_probabilities_are_rounded(settings):
    logits = torch.randn(300, 700, generator=torch.Generator().manual_seed(0)) * 3
    config = SamplingConfig(**settings)
    drawn = choose(logits, config, torch.full((300,), 1 - 2**-53, dtype=torch.float64))
    assert drawn.max() < 700
    assert (filtered_logits(logits, config).gather(1, drawn.unsqueeze(1)) > -torch.inf).all()


def test_one_row_that_is_no_numbers_is_seen_among_others():
    with pytest.raises(UserError, match="not numbers"):
        log_probabilities(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]))


def test_top_p_drops_what_comes_after_it_is_reached_exactly():
    assert len(kept(torch.zeros(4), top_p=0.5)) == 2
