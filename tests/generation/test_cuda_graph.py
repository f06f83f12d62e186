"""The kernels of one step, recorded once, continue every text.

Here torch.fx records the operations, and plays them with the same tensors: what depended on a
length in Python would be wrong at the next one. On a GPU: tests/cuda/test_generation.py.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gpt.configuration import SamplingConfig
from gpt.generation import Engine, Request
from gpt.generation.cuda_graph import GraphedStep
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt


def recorded(step):
    """GraphedStep._record for a processor."""
    nothing = torch.zeros(())
    play = make_fx(lambda _: step._compute())(nothing)
    scores = torch.empty_like(play(nothing))
    return SimpleNamespace(replay=lambda: scores.copy_(play(nothing))), scores


def engines(model, machine, **settings):
    """One that reads as ever, and one with a graph."""
    eager, graphed = (Engine(model, machine, **settings) for _ in range(2))
    eager._graph, graphed._graph = None, GraphedStep(model, machine, graphed._cache)
    return eager, graphed


def tokens(engine, requests):
    made = [[] for _ in requests]
    for index, new in engine.run(requests):
        made[index].append(new.token)
    return made


def some_requests(count):
    generator = random.Random(count)
    return [Request(random_tokens(generator.randint(1, 32), seed=n).tolist(),
                    SamplingConfig(max_new_tokens=generator.randint(1, 40), seed=n,
                                   temperature=n % 2, slide=n % 3 == 0)) for n in range(count)]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_what_was_recorded_continues_texts_of_any_length(changes, monkeypatch):
    monkeypatch.setattr(GraphedStep, "_record", recorded)
    eager, graphed = engines(tiny_gpt(**changes), CPU, rows=3)
    requests = some_requests(12)
    assert tokens(graphed, requests) == tokens(eager, requests)


def test_a_row_that_a_full_context_has_left_does_not_matter(monkeypatch):
    monkeypatch.setattr(GraphedStep, "_record", recorded)
    eager, graphed = engines(tiny_gpt(), CPU, rows=2)
    config = SamplingConfig(max_new_tokens=5, temperature=0)
    requests = [Request([1, 2], config), Request([3] * 32, config)]
    found = tokens(graphed, requests)
    assert found == tokens(eager, requests) and [*map(len, found)] == [5, 1]


def test_it_is_recorded_once(monkeypatch):
    calls = []
    monkeypatch.setattr(GraphedStep, "_record", lambda step: calls.append(step) or recorded(step))
    _, graphed = engines(tiny_gpt(), CPU, rows=2)
    tokens(graphed, some_requests(5))
    assert len(calls) == 1


def test_a_compiler_sees_one_graph_without_a_number_that_changes():
    model = tiny_gpt(**ARCHITECTURES["windows"])
    engine = Engine(model, CPU, rows=3)
    step = GraphedStep(model, CPU, engine._cache)
    compiled = torch.compile(step._compute, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        expected = step._compute()  # first, as a prompt would be read
        assert torch.equal(compiled(), expected)
        step._places[:, 0] = torch.tensor([30, 1, 2])
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(), step._compute())
