"""What guesses tokens ahead: each draft's guesses, what it remembers, and what it forgets."""

from __future__ import annotations

import random

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.generation import DraftModel, Engine, PromptLookup, Request
from gpt.generation.request import Continuation
from tests.tiny import CPU, tiny_gpt

DRAFTS = {"look-up": PromptLookup, "model": lambda: DraftModel(tiny_gpt(vocab_size=7), CPU),
          "shorter": lambda: DraftModel(tiny_gpt(vocab_size=7, block_size=16), CPU)}


def made(request, draft=None, model=None):
    engine = Engine(model or tiny_gpt(vocab_size=7), CPU, rows=1, draft=draft)
    return [new.token for _, new in engine.run([request])]


@pytest.mark.parametrize("name", DRAFTS)
@torch.inference_mode()
def test_a_draft_that_has_read_several_texts_along_guesses_as_one_that_begins(name):
    along, generator = DRAFTS[name](), random.Random(0)
    texts = [Continuation(number, Request([1, number], SamplingConfig(
        seed=number, slide=True, max_new_tokens=10_000)), 32) for number in (0, 6)]
    for _ in range(120):
        text, most = generator.choice(texts), generator.randint(0, 6)
        guesses = along.propose(text, most)
        assert guesses == DRAFTS[name]().propose(text, most)
        right = guesses[:generator.randint(0, 4)]
        for token in [*right, generator.randrange(7)]:
            text.accept(token, ())


@pytest.mark.parametrize(("name", "context"), [("model", 32), ("shorter", 16)])
@torch.inference_mode()
def test_a_model_guesses_four_tokens_or_as_many_as_its_context_has_room_for(name, context):
    draft, config = DRAFTS[name](), SamplingConfig(seed=0, slide=True, max_new_tokens=1000)
    text = Continuation(0, Request([1]), 32)
    for length in range(1, 33):
        assert len(draft.propose(text, 9)) == max(0, min(4, context - length))
        assert len(draft.propose(text, 2)) == max(0, min(2, context - length))
        text.accept(3, ())
    text = Continuation(1, Request([1] * 40, config), 32)  # of which the last 16 are read
    assert len(draft.propose(text, 9)) == max(0, min(4, context - 16))


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_with_a_shorter_context_or_of_damaged_weights_costs_no_token(name):
    request = Request([1, 2], SamplingConfig(seed=0, max_new_tokens=60, slide=True))
    assert made(request, DRAFTS[name]()) == made(request)
    if name == "model":
        smaller = tiny_gpt(vocab_size=7)
        with torch.no_grad():
            smaller.final_norm.weight.fill_(torch.nan)
        draft = DraftModel(smaller, CPU)
        assert draft.propose(Continuation(0, request, 32), 4) == []
        assert made(request, draft) == made(request)


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_remembers_no_text_that_has_ended_or_was_cancelled(name):
    draft = DRAFTS[name]()
    engine = Engine(tiny_gpt(vocab_size=7), CPU, rows=2, draft=draft)
    for count in (3, 4, 5, 30):
        last = engine.submit(Request([1, 2], SamplingConfig(seed=0, max_new_tokens=count)))
    ended = 0
    while ended < 3:
        ended += sum(new.end is not None for _, new in engine.step())
    assert engine.busy and {one.number for one in draft._known} <= {last}
    engine.cancel(last)
    assert not engine.busy and not draft._known


def test_a_draft_is_asked_for_no_more_than_the_context_has_room_for():
    class Asked(PromptLookup):
        """Guesses nothing."""

        def propose(self, continuation, most):
            assert most == 32 - len(continuation.tokens)
            return []

    assert len(made(Request([1], SamplingConfig(seed=0)), Asked())) == 32


def test_a_right_draft_fills_the_context_in_as_few_steps_as_can_be():
    model = tiny_gpt()
    engine = Engine(model, CPU, rows=1, draft=DraftModel(model, CPU, tokens=40))
    engine.submit(Request([1, 2], SamplingConfig(seed=0, max_new_tokens=50)))
    assert [len(engine.step()) for _ in range(2)] == [1, 30] and not engine.busy


@torch.inference_mode()
def test_a_draft_model_never_guesses_what_stands_for_no_text():
    model, text = tiny_gpt(), Continuation(0, Request([1], SamplingConfig(temperature=0)), 32)
    first = DraftModel(model, CPU).propose(text, 4)
    other = DraftModel(model, CPU, never=sorted({*first})).propose(text, 4)
    assert len(other) == 4 and not {*first} & {*other}
