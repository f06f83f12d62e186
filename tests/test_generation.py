"""Generation: cached equals uncached, and every filter does what its name says."""

from __future__ import annotations

import pytest
import torch

from gpt.errors import UserError
from gpt.generation import SamplingConfig, generate_tokens
from gpt.generation.engine import ContextFull
from gpt.generation.sampling import filtered_logits, next_token, penalise_repetition
from gpt.generation.text import stream_text
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt

NO_STOP = ()


def generated(model, prompt, stop_tokens=NO_STOP, **settings):
    config = SamplingConfig(**settings)
    return [new.token for new in generate_tokens(model, prompt, config, CPU, stop_tokens)]


@torch.no_grad()
def uncached_greedy(model, prompt, count):
    """The definition: read everything again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt):]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_cached_and_uncached_greedy_generation_agree_token_for_token(changes):
    model = tiny_gpt(seed=2, **changes)
    seen = set()
    for seed in range(20):
        prompt = random_tokens(1 + seed % 9, seed=seed).tolist()
        expected = uncached_greedy(model, prompt, 20)
        assert generated(model, prompt, max_new_tokens=20, temperature=0) == expected
        seen |= set(expected)
    assert len(seen) > 5  # not one token over and over


@pytest.mark.parametrize("pattern", ["S", "SF"])
def test_with_windows_a_full_context_slides_as_a_model_that_reads_everything_again(pattern):
    model, prompt = tiny_gpt(window=4, window_pattern=pattern), random_tokens(30).tolist()
    slid = generated(model, prompt, temperature=0, max_new_tokens=40, slide=True)
    sequence = list(prompt)
    for token in slid:  # block_size 32: once 33 tokens would be read, the last 16 are
        kept = sequence[17 * ((len(sequence) - 16) // 17):]
        assert token == uncached_greedy(model, kept, 1)[0]
        sequence.append(token)
    assert len(set(slid)) > 3


@torch.no_grad()
def test_a_tokens_logprob_is_the_models_own_before_temperature_and_filters():
    model, sequence = tiny_gpt(), [3, 1, 4]
    config = SamplingConfig(temperature=0.3, top_k=5, max_new_tokens=10, seed=0)
    for new in generate_tokens(model, sequence, config, CPU, NO_STOP):
        scores = model(torch.tensor([sequence]))[0, -1]
        assert new.logprob == pytest.approx(float(scores.log_softmax(-1)[new.token]), abs=1e-4)
        sequence = [*sequence, new.token]
    assert len(sequence) == 13


def test_ids_that_stand_for_no_text_are_never_chosen():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=20, temperature=0)
    never = torch.tensor(sorted(set(free)))
    config = SamplingConfig(max_new_tokens=20, temperature=0)
    chosen = [new.token for new in generate_tokens(model, [4], config, CPU, NO_STOP, never)]
    assert len(chosen) == 20 and not set(chosen) & set(free)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model, prompt = tiny_gpt(), [1, 2, 3]
    first = generated(model, prompt, max_new_tokens=20, seed=5)
    assert generated(model, prompt, max_new_tokens=20, seed=5) == first
    assert generated(model, prompt, max_new_tokens=20, seed=6) != first


def test_generation_uses_the_whole_context_then_stops_or_slides():
    model, prompt = tiny_gpt(), [1] * 30  # block_size 32
    made = []
    with pytest.raises(ContextFull):
        for new in generate_tokens(model, prompt, SamplingConfig(temperature=0), CPU, NO_STOP):
            made.append(new.token)
    assert made == uncached_greedy(model, prompt, 3)  # the 33rd token follows all 32

    slid = generated(model, prompt, temperature=0, max_new_tokens=60, slide=True)
    assert len(slid) == 60 and slid[:3] == made
    after_sliding = (prompt + slid)[33 - 16:33]
    assert slid[3] == uncached_greedy(model, after_sliding, 1)[0]


def test_a_context_of_one_token_slides_on_the_last_token_alone():
    model = tiny_gpt(block_size=1)
    made = generated(model, [7], temperature=0, max_new_tokens=5, slide=True)
    assert made == [uncached_greedy(model, [token], 1)[0] for token in [7, *made[:-1]]]


def test_a_prompt_longer_than_the_context_is_refused_and_one_that_fills_it_is_not():
    model = tiny_gpt()
    assert len(generated(model, [1] * 32, max_new_tokens=1)) == 1
    with pytest.raises(UserError, match="33 tokens, the model reads 32"):
        generated(model, [1] * 33, max_new_tokens=1)


def test_generation_ends_with_the_first_of_the_stop_tokens():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=10, temperature=0)
    early, late = sorted({free.index(token) for token in free})[1::2][:2]  # first occurrences
    for stops in ([early], [late, early], [early, late], [late]):
        ended = generated(model, [4], [free[i] for i in stops], max_new_tokens=10, temperature=0)
        assert ended == free[:min(stops) + 1]


def test_no_tokens_are_made_when_none_are_asked_for():
    assert generated(tiny_gpt(), [4], max_new_tokens=0) == []


LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0, 0.0])


def kept(**settings):
    return (filtered_logits(LOGITS, SamplingConfig(**settings)) > -torch.inf).nonzero().flatten()


def test_top_k_keeps_exactly_the_k_likeliest_even_among_equals():
    assert kept(top_k=2).tolist() == [1, 2]
    assert kept(top_k=100).tolist() == [0, 1, 2, 3, 4]
    equal = filtered_logits(torch.zeros(6), SamplingConfig(top_k=2))
    assert (equal > -torch.inf).sum() == 2


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    probabilities = LOGITS.softmax(0).sort(descending=True).values
    p = float(probabilities[:2].sum())
    assert kept(top_p=p - 1e-4).tolist() == [1, 2]
    assert kept(top_p=p + 1e-4).tolist() == [0, 1, 2]
    assert kept(top_p=1e-9).tolist() == [1]
    assert kept(top_p=1.0).tolist() == [0, 1, 2, 3, 4]


def test_min_p_keeps_tokens_relative_to_the_likeliest():
    ratio = float(torch.tensor(1.0 - 2.0).exp())  # of the second to the first
    assert kept(min_p=ratio - 1e-4).tolist() == [1, 2]
    assert kept(min_p=ratio + 1e-4).tolist() == [1]


def test_temperature_sharpens_and_flattens():
    cold, plain, hot = (filtered_logits(LOGITS, SamplingConfig(temperature=t)).softmax(0)[1]
                        for t in (0.5, 1.0, 2.0))
    assert cold > plain > hot
    tiny = filtered_logits(LOGITS, SamplingConfig(temperature=1e-30)).softmax(0)
    assert tiny.tolist() == [0, 1, 0, 0, 0]


def test_a_repetition_penalty_lowers_scores_of_either_sign():
    seen = torch.tensor([1, 3, 1])
    assert penalise_repetition(LOGITS, 2.0, seen).tolist() == [0.5, 1.0, 1.0, -2.0, 0.0]
    assert torch.equal(penalise_repetition(LOGITS, 1.0, seen), LOGITS)


def test_samples_follow_the_filtered_distribution():
    config = SamplingConfig(temperature=0.7, top_k=4)
    expected = filtered_logits(LOGITS, config).softmax(0)
    generator, draws = torch.Generator().manual_seed(0), 20_000
    counts = torch.zeros(5)
    for _ in range(draws):
        counts[next_token(LOGITS, config, torch.empty(0).long(), generator)] += 1
    assert counts[3] == 0
    # Chi-squared with 3 degrees of freedom: above 16.3 one time in a thousand.
    drawn = expected > 0
    chi2 = ((counts - draws * expected)[drawn] ** 2 / (draws * expected[drawn])).sum()
    assert chi2 < 16.3


def stream(*pieces, stop=()):
    return list(stream_text((p.encode() if isinstance(p, str) else p for p in pieces), stop))


def test_characters_spread_over_tokens_appear_whole():
    data = "aé日🙂b".encode()
    pieces = stream(*(data[i:i + 1] for i in range(len(data))))
    assert pieces == ["a", "é", "日", "🙂", "b"]
    assert stream(b"a\xe6\x97") == ["a", "\ufffd"]  # a character that never completes


def test_a_stop_text_is_found_across_pieces_and_never_shown():
    assert "".join(stream("ab", "c-E", "N", "D tail", stop=["END"])) == "abc-"
    assert "".join(stream("abc", "def", stop=["cd", "b"])) == "a"
    assert "".join(stream("EN", "X", stop=["END"])) == "ENX"
    assert "".join(stream("aaE", "N", stop=["END"])) == "aaEN"  # withheld text comes at the end
    assert stream("x", "y", stop=[""]) == ["x", "y"]


def test_nothing_is_read_beyond_the_stop_text():
    def endless():
        yield b"stop"
        raise AssertionError("asked for more after the stop text")

    assert list(stream_text(endless(), ["stop"])) == []
