"""Every way of generating gives the tokens of reading everything again for every token."""

from __future__ import annotations

import math
import random

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import DraftModel, Engine, PromptLookup, Request, room_for
from gpt.generation import engine as engine_module
from gpt.generation.engine import spans
from gpt.generation.request import Continuation
from gpt.generation.sampling import choose
from gpt.machine.device import Machine
from tests.tiny import ARCHITECTURES, CPU, generate_tokens, random_tokens, tiny_gpt

NO_STOP = ()


def generated(model, prompt, stop_tokens=NO_STOP, **settings):
    config = SamplingConfig(**settings)
    return [new.token for new in generate_tokens(model, prompt, config, CPU, stop_tokens)]


def together(model, requests, rows=4, **settings):
    """Tokens of each request, from one engine."""
    made = [[] for _ in requests]
    for index, new in Engine(model, CPU, rows=rows, **settings).run(requests):
        made[index].append(new.token)
    return made


@torch.no_grad()
def uncached_greedy(model, prompt, count):
    """The definition: read everything again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt):]


@torch.no_grad()
def uncached(model, request):
    """The same for any request, until the context is full."""
    config, tokens = request.config, list(request.prompt)
    generator = torch.Generator().manual_seed(config.seed)
    while (len(tokens) - len(request.prompt) < config.max_new_tokens
           and len(tokens) <= model.config.block_size):
        uniform = torch.rand(1, generator=generator, dtype=torch.float64)
        tokens += choose(model(torch.tensor([tokens]))[:, -1], config, uniform).tolist()
    return tokens[len(request.prompt):]


def random_requests(count, seed=0, longest=24, vocab_size=61):
    """Prompts of every length, greedy and drawn, some of them twice."""
    generator = random.Random(seed)
    requests = []
    for number in range(count):
        prompt = generator.choices(range(vocab_size), k=generator.randint(1, longest))
        settings = generator.choice(({"temperature": 0}, {}, {"top_k": 5}, {"top_p": 0.9},
                                     {"min_p": 0.1, "temperature": 1.3}))
        if requests and generator.random() < 0.2:
            prompt = requests[-1].prompt
        requests.append(Request(prompt, SamplingConfig(
            seed=number, max_new_tokens=generator.randint(1, 12), **settings)))
    return requests


def assert_same(model, requests, found, expected):
    """Equal tokens, but for a draw that fell within float32's rounding of a border."""
    differing = [i for i, pair in enumerate(zip(found, expected, strict=True))
                 if pair[0] != pair[1]]
    for i in differing:
        place = next(t for t, (a, b) in enumerate(zip(found[i], expected[i], strict=False))
                     if a != b)
        assert borders_within(1e-6, model, requests[i], expected[i][:place]), (i, place)
    assert len(differing) <= len(requests) // 500


@torch.no_grad()
def borders_within(distance, model, request, made):
    """Whether the number that draws the token behind `made` is that close to another token's."""
    generator = torch.Generator().manual_seed(request.config.seed)
    uniform = torch.rand(len(made) + 1, generator=generator, dtype=torch.float64)[-1:]
    logits = model(torch.tensor([[*request.prompt, *made]]))[:, -1]
    near = [choose(logits, request.config, (uniform + d).clamp(0, 1 - 1e-12)).item()
            for d in (-distance, distance)]
    return near[0] != near[1]


# ----- One definition, many ways

@pytest.mark.timeout(1200)  # a minute by itself, several on a machine with other work
@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_prompts_are_continued_alike_by_every_way_of_generating(count, monkeypatch):
    """Naive, alone from the cache, prompts in chunks, in ragged batches, with drafts."""
    model, requests = tiny_gpt(seed=2), random_requests(count)
    expected = [uncached(model, request) for request in requests]
    assert len({tuple(tokens) for tokens in expected}) > 0.7 * count
    assert_same(model, requests, [[new.token for new in generate_tokens(
        model, request.prompt, request.config, CPU)] for request in requests], expected)
    assert_same(model, requests, together(model, requests, rows=7), expected)
    monkeypatch.setattr(engine_module, "CHUNK", 3)
    monkeypatch.setattr(engine_module, "SHORT", 2)
    assert_same(model, requests, together(model, requests, rows=5), expected)
    some = count // 5
    assert_same(model, requests, together(model, requests, rows=5, in_turns=True, remember=200),
                expected)
    for draft in (PromptLookup(), DraftModel(tiny_gpt(seed=3), CPU), DraftModel(model, CPU)):
        assert_same(model, requests[:some], together(model, requests[:some], draft=draft),
                    expected[:some])


OTHERS = {"sliding": {"window": 3}, "one slides": {"window": 4, "window_pattern": "FS"},
          "itself alone": {"window": 1}, "grouped": {"n_kv_head": 2}}


@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("changes", [*ARCHITECTURES.values(), *OTHERS.values()],
                         ids=[*ARCHITECTURES, *OTHERS])
def test_every_architecture_is_continued_alike_in_every_way(changes, count, monkeypatch):
    model, requests = tiny_gpt(seed=2, **changes), random_requests(count, seed=1)
    expected = [uncached(model, request) for request in requests]
    assert len({token for tokens in expected for token in tokens}) > 5
    assert_same(model, requests, together(model, requests), expected)
    monkeypatch.setattr(engine_module, "CHUNK", 4)
    monkeypatch.setattr(engine_module, "SHORT", 3)
    for draft in (None, PromptLookup(), DraftModel(tiny_gpt(seed=3), CPU)):
        assert_same(model, requests, together(model, requests, draft=draft), expected)
        assert_same(model, requests, together(model, requests, draft=draft, in_turns=True,
                                              remember=60), expected)


def test_batch_mates_change_nothing():
    """Nor do their number, their order, or when they come."""
    model, requests = tiny_gpt(), random_requests(40, seed=5)
    alone = [together(model, [request])[0] for request in requests]
    order = list(range(40))
    for rows in (1, 2, 3, 16, 40):
        random.Random(rows).shuffle(order)
        mixed = together(model, [requests[i] for i in order], rows=rows)
        assert_same(model, requests, [mixed[order.index(i)] for i in range(40)], alone)


def test_requests_can_come_and_go_at_any_time():
    model, requests = tiny_gpt(), random_requests(60, seed=7)
    expected = [uncached(model, request) for request in requests]
    generator, engine = random.Random(0), Engine(model, CPU, rows=3)
    made, numbers, cancelled = {}, {}, set()
    waiting = list(range(60))
    while waiting or engine.busy:
        while waiting and generator.random() < 0.4:
            index = waiting.pop()
            numbers[engine.submit(requests[index])] = index
        for number, new in engine.step() if engine.busy else ():
            assert number not in cancelled
            made.setdefault(numbers[number], []).append(new.token)
        if numbers and generator.random() < 0.05:
            cancelled.add(number := generator.choice(list(numbers)))
            engine.cancel(number)
    assert len(cancelled) > 3
    for number, index in numbers.items():
        tokens = made.get(index, [])
        assert tokens == expected[index][:len(tokens)]
        assert number in cancelled or len(tokens) == len(expected[index])


def test_a_draft_that_is_right_saves_steps_and_one_that_is_wrong_costs_no_token():
    model = tiny_gpt()
    request = Request([1, 2, 3], SamplingConfig(seed=0, max_new_tokens=25))

    def steps(draft):
        engine = Engine(model, CPU, rows=1, draft=draft)
        engine.submit(request)
        return next(n for n in range(1, 100) if engine.step() is not None and not engine.busy)

    assert steps(None) == 25
    assert steps(DraftModel(model, CPU, tokens=4)) == 6  # the prompt's, then 5 tokens each
    assert 20 < steps(DraftModel(tiny_gpt(seed=9), CPU)) <= 25


def test_a_prompt_look_up_guesses_what_followed_the_same_tokens():
    def guess(text, most=5, **settings):
        return PromptLookup(**settings).propose(Continuation(0, Request(text), 100), most)

    assert guess([1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5, 1, 2, 3]
    assert guess([1, 2, 3, 4, 5, 1, 2, 3], most=2) == [4, 5]
    assert guess([1, 2, 3, 4, 5, 1, 2, 3], tokens=1) == [4]
    assert guess([1, 9, 2, 3, 7, 2, 3, 8, 1, 2, 3], longest=2)[:4] == [8, 1, 2, 3]  # the latest
    assert guess([7, 2, 3, 9, 2, 3, 8, 7, 2, 3]) == [9, 2, 3, 8, 7]  # the longest ending
    assert guess([1, 2, 3]) == [] and guess([1]) == []
    assert guess([4, 1, 2, 1, 2]) == [1, 2, 1, 2, 1]  # what repeats goes on


@pytest.mark.parametrize("make", [PromptLookup, lambda: DraftModel(tiny_gpt(seed=3), CPU)])
def test_engines_that_share_a_draft_do_not_mix_up_their_texts(make):
    draft, model = make(), tiny_gpt()
    engines = [Engine(model, CPU, rows=1, draft=draft) for _ in range(2)]
    for engine, length in zip(engines, (25, 2), strict=True):  # their texts have the same number
        engine.submit(Request(([1, 2] * 13)[:length], SamplingConfig(seed=0, max_new_tokens=6)))
    known = []
    while any(engine.busy for engine in engines):
        for engine in engines:
            engine.step()
        known.append(len(draft._known))
    assert max(known) == 2 and known[-1] == 0


def test_a_look_up_that_has_read_along_guesses_as_one_that_begins():
    generator, along = random.Random(0), PromptLookup()
    text = Continuation(0, Request([1]), 300)
    for _ in range(200):
        assert along.propose(text, 6) == PromptLookup().propose(text, 6)
        text.tokens += generator.choices([1, 2, 3], k=generator.randint(1, 3))


def test_equal_prompts_are_read_once(monkeypatch):
    model, read = tiny_gpt(), []
    original = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *args, **kwargs: (
        read.append(tokens.shape), original(tokens, *args, **kwargs))[1])
    requests = [Request([1, 2, 3, 4, 5], SamplingConfig(seed=seed, max_new_tokens=1))
                for seed in range(6)]
    made = together(model, requests, rows=6)
    assert read == [(1, 5)] and len({tuple(tokens) for tokens in made}) > 1


def alike(row):
    """Of what kind a row's prompt is."""


def test_short_neighbours_are_read_side_by_side_and_long_prompts_alone():
    lengths = {0: 3, 1: 5, 2: 900, 3: 2, 5: 4, 6: 4}
    assert list(spans([0, 1, 2, 3, 5, 6], lengths.__getitem__, alike)) == [
        range(2), range(2, 3), range(3, 4), range(5, 7)]
    assert list(spans([4], lambda row: 1, alike)) == [range(4, 5)]
    assert list(spans([0, 1, 2, 3], lambda row: 1, lambda row: row // 3)) == [range(3),
                                                                              range(3, 4)]


# ----- Prompts in turns with other texts, and what is remembered of them

def widths_read(model, monkeypatch):
    """How many texts and tokens each call of the model reads, as they come."""
    read, original = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *args, **kwargs: (
        read.append(tuple(tokens.shape)), original(tokens, *args, **kwargs))[1])
    return read


def test_a_long_prompt_keeps_others_waiting_for_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 8)
    for in_turns in (True, False):
        model = tiny_gpt(block_size=128)
        read = widths_read(model, monkeypatch)
        engine = Engine(model, CPU, rows=3, in_turns=in_turns)
        first = engine.submit(Request([1, 2], SamplingConfig(max_new_tokens=30)))
        engine.step()
        for seed in range(2):
            engine.submit(Request(random_tokens(70, seed=seed).tolist(),
                                  SamplingConfig(max_new_tokens=3)))
        read.clear()
        found = [number for number, _ in engine.step()]
        if in_turns:  # a token of the first text, and a chunk, by turns
            for _ in range(7):
                found += [number for number, _ in engine.step()]
            assert found == [first] * 4 and read[:4] == [(3, 1), (1, 8)] * 2
        else:  # both prompts, whole; then the first text
            assert first not in found and len(read) == 18


def test_the_first_token_behind_a_prompt_does_not_wait_for_the_next_one(monkeypatch):
    model = tiny_gpt(block_size=128)
    read = widths_read(model, monkeypatch)
    engine = Engine(model, CPU, rows=3, in_turns=True)
    numbers = [engine.submit(Request([1, 2, seed], SamplingConfig(max_new_tokens=3)))
               for seed in range(2)]
    assert [number for number, _ in engine.step()] == numbers and read == [(2, 3)]
    assert [number for number, _ in engine.step()] == numbers and read == [(2, 3), (2, 1)]


def test_prompts_that_come_later_are_not_behind_a_long_one(monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 8)
    engine = Engine(tiny_gpt(block_size=128), CPU, rows=2, in_turns=True)
    engine.submit(Request(random_tokens(100).tolist(), SamplingConfig(max_new_tokens=1)))
    engine.step()
    short = engine.submit(Request([1] * 20, SamplingConfig(max_new_tokens=1)))
    steps = [[number for number, _ in engine.step()] for _ in range(10)]
    assert [short] in steps


def test_what_prompts_begin_with_is_read_once_and_to_the_same_bits(monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 8)
    model, shared = tiny_gpt(block_size=64), random_tokens(20, seed=3).tolist()
    read = widths_read(model, monkeypatch)

    def made(engine, prompt, **more):
        read.clear()
        return list(engine.run([Request(prompt, SamplingConfig(max_new_tokens=2, seed=0),
                                        **more)]))

    engine = Engine(model, CPU, rows=2, remember=24)
    made(engine, [*shared, 1, 2, 3])
    for prompt, widths in (([*shared, 4, 5], [6]), ([*shared, 1, 2, 3], [7]), (shared[:16], [8]),
                           (shared[:17], [1]), ([9, *shared], [8, 8, 5])):
        found = made(engine, prompt)
        assert read == [(1, width) for width in [*widths, 1]]
        assert found == made(Engine(model, CPU), prompt)
    assert len(engine._prefixes._known) == 3  # 24 tokens: the latest used
    for first in ((1, 8), (1, 6)):
        made(engine, [*shared, 4, 5])
        assert read[0] == first
    made(engine, random_tokens(24, seed=8).tolist())  # for which there is no room beside them
    made(engine, [*shared, 4, 5])
    assert read[0] == (1, 8)
    for _ in range(2):
        made(engine, [*shared, *range(5)])  # all that there is room for
    made(engine, random_tokens(8, seed=7).tolist())  # for which the end of it has to go
    made(engine, [*shared, *range(5)])
    assert read == [(1, 8), (1, 1), (1, 1)]


def test_what_is_read_in_both_directions_is_not_remembered(monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 4)
    model, tokens = tiny_gpt(), random_tokens(12).tolist()
    engine = Engine(model, CPU, remember=100)
    for prompt, prefix in ((tokens, 12), (tokens[:11], 11), (tokens, 0), (tokens, 12)):
        request = Request(prompt, SamplingConfig(temperature=0, max_new_tokens=3), prefix)
        assert list(engine.run([request])) == list(Engine(model, CPU).run([request]))


# ----- What the model thought

@torch.no_grad()
def test_prompts_are_scored_and_likeliest_tokens_told(monkeypatch):
    model, prompts = tiny_gpt(), [random_tokens(n, seed=n).tolist() for n in (9, 1, 9, 5)]
    prompts[2] = prompts[0]
    for chunk, settings in ((512, {}), (4, {"in_turns": True, "remember": 100})):
        monkeypatch.setattr(engine_module, "CHUNK", chunk)
        requests = [Request(prompt, SamplingConfig(temperature=0, max_new_tokens=3),
                            alternatives=2 + (i == 3), scored=i < 3)
                    for i, prompt in enumerate(prompts)]
        made, engine = [[] for _ in prompts], Engine(model, CPU, rows=4, **settings)
        list(engine.run([Request(prompts[0], SamplingConfig(max_new_tokens=1))]))  # is known now
        for index, new in engine.run(requests):
            made[index].append(new)
        for request, found in zip(requests, made, strict=True):
            text = [*request.prompt, *(new.token for new in found)]
            logprobs = model(torch.tensor([text[:-1]]))[0].log_softmax(-1)
            told = [*found[0].before, *found]
            first = 1 if request.scored else len(request.prompt)
            assert [new.token for new in told] == text[first:]
            assert all(new.before == () for new in found[1:])
            for new, expected in zip(told, logprobs[first - 1:], strict=True):
                assert new.logprob == pytest.approx(expected[new.token].item(), abs=1e-5)
                top = expected.topk(request.alternatives)
                assert [i for i, _ in new.likeliest] == top.indices.tolist()
                assert [p for _, p in new.likeliest] == pytest.approx(top.values.tolist(), abs=1e-5)
        assert all(found[0].logprob == found[0].likeliest[0][1] for found in made)  # to the bit


def test_an_error_in_one_request_ends_it_alone():
    model = tiny_gpt()
    fine = Request([1, 2], SamplingConfig(seed=0, max_new_tokens=6))
    nothing_left = Request([3], SamplingConfig(seed=0, banned_tokens=[*range(61)]))
    alone = together(model, [fine])[0]
    engine = Engine(model, CPU, rows=3)
    numbers = [engine.submit(request) for request in (fine, nothing_left, fine)]
    made = {number: [] for number in numbers}
    while engine.busy:
        for number, new in engine.step():
            made[number].append(new)
    assert [new.token for new in made[numbers[0]]] == alone
    assert [new.token for new in made[numbers[2]]] == alone
    assert [new.end for new in made[numbers[1]]] == ["error"]
    assert "no token is left" in str(made[numbers[1]][0].error)
    with pytest.raises(UserError, match="no token is left"):
        list(engine.run([fine, nothing_left]))


# ----- Where a text ends

def test_the_last_token_says_why_it_is_the_last():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=10, temperature=0)

    def ends(prompt, stops=(), **settings):
        return [new.end for new in generate_tokens(
            model, prompt, SamplingConfig(temperature=0, **settings), CPU, stops)]

    assert ends([4], max_new_tokens=3) == [None, None, "length"]
    assert ends([4], free[:1], max_new_tokens=3) == ["stop"]
    assert ends([1] * 30) == [None, None, "context"]  # the 33rd token follows all 32
    assert ends([1] * 30, max_new_tokens=3)[-1] == "length"


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


def test_generation_uses_the_whole_context_then_stops_or_slides():
    model, prompt = tiny_gpt(), [1] * 30  # block_size 32
    made = generated(model, prompt, temperature=0)
    assert made == uncached_greedy(model, prompt, 3)
    slid = generated(model, prompt, temperature=0, max_new_tokens=60, slide=True)
    assert len(slid) == 60 and slid[:3] == made
    after_sliding = (prompt + slid)[33 - 16:33]
    assert slid[3] == uncached_greedy(model, after_sliding, 1)[0]
    for draft in (PromptLookup(), DraftModel(tiny_gpt(seed=1), CPU), DraftModel(model, CPU)):
        config = SamplingConfig(temperature=0, max_new_tokens=60, slide=True)
        assert together(model, [Request(prompt, config), Request([3], config)],
                        draft=draft)[0] == slid


def test_a_context_of_one_token_slides_on_the_last_token_alone():
    model = tiny_gpt(block_size=1)
    made = generated(model, [7], temperature=0, max_new_tokens=5, slide=True)
    assert made == [uncached_greedy(model, [token], 1)[0] for token in [7, *made[:-1]]]


def test_a_prompt_longer_than_the_context_is_refused_unless_it_slides():
    model, long = tiny_gpt(), random_tokens(50).tolist()
    assert len(generated(model, [1] * 32, max_new_tokens=1)) == 1
    with pytest.raises(UserError, match="50 tokens, the model reads 32"):
        generated(model, long, max_new_tokens=1)
    made = generated(model, long, max_new_tokens=4, temperature=0, slide=True)
    assert made == uncached_greedy(model, long[-16:], 4)


def test_generation_ends_with_the_first_of_the_stop_tokens():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=10, temperature=0)
    early, late = sorted({free.index(token) for token in free})[1::2][:2]  # first occurrences
    for stops in ([early], [late, early], [early, late], [late]):
        ended = generated(model, [4], [free[i] for i in stops], max_new_tokens=10, temperature=0)
        assert ended == free[:min(stops) + 1]


def test_no_tokens_are_made_when_none_are_asked_for():
    assert generated(tiny_gpt(), [4], max_new_tokens=0) == []
    assert together(tiny_gpt(), []) == []


def test_the_cache_has_room_for_the_longest_request_and_no_more():
    short = Request([1] * 5, SamplingConfig(max_new_tokens=3))
    assert room_for([short, Request([1], SamplingConfig(max_new_tokens=20))], 32) == 21
    assert room_for([Request([1] * 30, SamplingConfig(max_new_tokens=20))], 32) == 32
    assert room_for([Request([1], SamplingConfig(max_new_tokens=2, slide=True))], 32) == 32


# ----- What is drawn

@torch.no_grad()
def test_a_tokens_logprob_is_the_models_own_before_temperature_filters_and_controls():
    model, sequence = tiny_gpt(), [3, 1, 4]
    config = SamplingConfig(temperature=0.3, top_k=5, max_new_tokens=10, seed=0,
                            frequency_penalty=1.0)
    for new in generate_tokens(model, sequence, config, CPU, NO_STOP):
        scores = model(torch.tensor([sequence]))[0, -1]
        assert new.logprob == pytest.approx(float(scores.log_softmax(-1)[new.token]), abs=1e-4)
        sequence = [*sequence, new.token]
    assert len(sequence) == 13


def test_ids_that_stand_for_no_text_are_never_chosen():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=20, temperature=0)
    config = SamplingConfig(max_new_tokens=20, temperature=0)
    made = list(generate_tokens(model, [4], config, CPU, NO_STOP, sorted(set(free))))
    assert len(made) == 20 and not {new.token for new in made} & set(free)
    assert all(math.isfinite(new.logprob) for new in made)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model, prompt = tiny_gpt(), [1, 2, 3]
    first = generated(model, prompt, max_new_tokens=20, seed=5)
    assert generated(model, prompt, max_new_tokens=20, seed=5) == first
    assert generated(model, prompt, max_new_tokens=20, seed=6) != first
    assert generated(model, prompt, max_new_tokens=20) != generated(model, prompt,
                                                                    max_new_tokens=20)


def test_speculative_draws_follow_the_models_distribution():
    """Over many seeds, of the third token: chi-squared against its exact distribution."""
    model, prompt = tiny_gpt(vocab_size=5), [1, 2, 1, 2, 1]
    requests = [Request(prompt, SamplingConfig(seed=seed, max_new_tokens=3))
                for seed in range(600)]
    with torch.no_grad():
        pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
        first = model(torch.tensor([prompt]))[0, -1].softmax(-1)
        rows = torch.cat([torch.tensor([prompt]).expand(25, -1), pairs], dim=1)
        scores = model(rows).softmax(-1)
        joint = first[pairs[:, 0]] * scores[:, 4 + 1][torch.arange(25), pairs[:, 1]]
        expected = (joint.unsqueeze(1) * scores[:, -1]).sum(0)
    for draft in (PromptLookup(), DraftModel(tiny_gpt(vocab_size=5, seed=1), CPU)):
        made = torch.tensor(together(model, requests, rows=64, draft=draft))[:, 2]
        counts = made.bincount(minlength=5)
        chi2 = ((counts - 600 * expected) ** 2 / (600 * expected)).sum()
        assert chi2 < 18.5  # 4 degrees of freedom: above it one time in a thousand


def test_scores_that_are_no_numbers_are_an_error_and_not_a_text():
    model = tiny_gpt()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        generated(model, [1, 2], max_new_tokens=3)


# ----- What an engine is asked for

def test_requests_are_begun_in_the_order_in_which_they_came():
    requests = [Request([1 + n], SamplingConfig(seed=n, max_new_tokens=1 + n % 3))
                for n in range(9)]
    for rows in (1, 2):
        begun = list(dict.fromkeys(index for index, _ in Engine(
            tiny_gpt(), CPU, rows=rows).run(requests)))
        assert begun == list(range(9))


def test_a_request_that_waits_can_be_cancelled_and_others_stay():
    engine = Engine(tiny_gpt(), CPU, rows=1)
    numbers = [engine.submit(Request([1], SamplingConfig(max_new_tokens=2))) for _ in range(3)]
    engine.cancel(numbers[1])
    made = []
    while engine.busy:
        made += [number for number, _ in engine.step()]
    assert made == [numbers[0]] * 2 + [numbers[2]] * 2


def test_an_engine_can_run_again_and_counts_from_zero():
    engine, request = Engine(tiny_gpt(), CPU), Request([1], SamplingConfig(max_new_tokens=1))
    for _ in range(2):
        assert [index for index, _ in engine.run([request, request])] == [0, 1]
    engine.submit(request)
    with pytest.raises(AssertionError, match="mixed up"):
        next(engine.run([request]))
    with pytest.raises(AssertionError, match="beams"):
        engine.submit(Request([1], SamplingConfig(beams=2)))


def test_an_engine_reads_no_more_than_its_model_and_its_rows_have_room_for():
    for most, context in ((100, 32), (8, 8), (None, 32)):
        engine = Engine(tiny_gpt(), CPU, max_tokens=most)
        engine.submit(Request([1] * context, SamplingConfig()))
        with pytest.raises(UserError, match=f"the model reads {context} "):
            engine.submit(Request([1] * (context + 1), SamplingConfig()))


def test_short_prompts_are_those_of_up_to_64_tokens():
    assert list(spans([0, 1], lambda row: 64, alike)) == [range(2)]
    assert list(spans([0, 1], lambda row: 65 - row, alike)) == [range(1), range(1, 2)]


def test_requests_that_differ_in_one_filter_are_drawn_for_apart():
    model = tiny_gpt()
    for first, second in (({"min_p": 0.9}, {"min_p": 0.001}), ({"top_p": 0.1}, {"top_p": 0.99}),
                          ({"top_k": 1}, {"top_k": 50}), ({"temperature": 0.1}, {})):
        requests = [Request([1, 2], SamplingConfig(seed=0, max_new_tokens=12, **settings))
                    for settings in (first, second)]
        alone = [together(model, [request])[0] for request in requests]
        assert alone[0] != alone[1] and together(model, requests) == alone


def test_tokens_and_log_probabilities_stay_with_their_request_whatever_filters_share_a_step():
    model, filters = tiny_gpt(), ({"top_k": 5}, {"top_k": 9}, {"top_k": 5}, {})
    requests = [Request([row + 1, 7], SamplingConfig(seed=row, max_new_tokens=6, **settings))
                for row, settings in enumerate(filters)]
    found = [[] for _ in requests]
    for index, new in Engine(model, CPU, rows=4).run(requests):
        found[index].append((new.token, round(new.logprob, 4)))
    alone = [[(new.token, round(new.logprob, 4)) for new in generate_tokens(
        model, request.prompt, request.config)] for request in requests]
    assert found == alone and len({*map(tuple, alone)}) == 4


def test_a_stop_token_that_is_also_the_last_one_allowed_is_a_stop():
    for prompt, settings in (([1], {"max_new_tokens": 2}), ([1] * 31, {})):
        made = list(generate_tokens(tiny_gpt(), prompt, SamplingConfig(
            forced_tokens=[3, 5], **settings), CPU, [5]))
        assert [new.end for new in made] == [None, "stop"]


@torch.no_grad()
def test_a_tokens_logprob_counts_the_ids_that_are_never_chosen():
    model, never = tiny_gpt(), range(1, 60)
    [new] = generate_tokens(model, [3], SamplingConfig(temperature=0, max_new_tokens=1), CPU,
                            NO_STOP, never)
    logprobs = model(torch.tensor([[3]]))[0, -1].log_softmax(-1)
    assert new.token in (0, 60) and new.logprob == pytest.approx(float(logprobs[new.token]),
                                                                 abs=1e-4)


def test_in_bfloat16_log_probabilities_are_those_of_float32_but_for_rounding():
    model, machine = tiny_gpt(), Machine(torch.device("cpu"), torch.bfloat16)
    config = SamplingConfig(temperature=0, forced_tokens=random_tokens(8).tolist(),
                            max_new_tokens=8)
    exact, rounded = (torch.tensor([new.logprob for new in generate_tokens(
        model, [1, 2], config, each)]) for each in (CPU, machine))
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert (rounded.bfloat16().float() != rounded).any()


# ----- Prompts that are read in both directions

@torch.no_grad()
def uncached_both_ways(model, request):
    """The likeliest token each time; after the context has slid, every token reads back alone."""
    made, kept, left = [], list(request.prompt), request.prefix
    if len(kept) > 32:
        kept, left = kept[-16:], max(0, left - (len(kept) - 16))
    while len(made) < request.config.max_new_tokens:
        if len(kept) > 32:
            kept, left = kept[-16:], 0
        prompts = (torch.arange(len(kept)) < left).unsqueeze(0)
        made.append(int(model(torch.tensor([kept]), prompts=prompts)[0, -1].argmax()))
        kept.append(made[-1])
    return made


def test_every_prompt_has_a_prefix_of_its_own(monkeypatch):
    """In chunks and side by side, equal prompts and prompts that slide."""
    model, tokens = tiny_gpt(), random_tokens(40).tolist()
    requests = [Request(tokens[:length], SamplingConfig(temperature=0, max_new_tokens=25,
                                                        slide=True), prefix)
                for length, prefix in ((10, 10), (10, 0), (10, 6), (30, 30), (7, 7), (40, 40),
                                       (40, 30), (40, 10), (31, 2), (10, 6))]
    expected = [uncached_both_ways(model, request) for request in requests]
    assert len({tuple(made) for made in expected[:3]}) == 3
    for chunk in (512, 4):
        monkeypatch.setattr(engine_module, "CHUNK", chunk)
        for rows in (1, 3, 10):
            assert together(model, requests, rows=rows) == expected
