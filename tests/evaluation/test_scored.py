"""Each token of a text once, with what the model thought of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gpt.batches import EvaluationWindows
from gpt.evaluation import score_tokens
from gpt.machine.device import Machine
from gpt.machine.ranks import joined
from gpt.training.evaluate import evaluate
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, END, random_tokens, tiny_gpt, tokenized

V = 61
TOKENS = random_tokens(150, vocab_size=V - 1, seed=3).tolist()
for end in (40, 41, 100):
    TOKENS[end] = V - 1


def windows(isolate: bool = False, length: int = 16, rows: int = 3) -> EvaluationWindows:
    return EvaluationWindows(tokenized(TOKENS, V, V - 1), length, rows, isolate=isolate)


def by_hand(model, isolate: bool) -> list[tuple[int, float, int, float, bool]]:
    """Token by token, each window (and each document in it) read by itself."""
    found = []
    with torch.no_grad():
        for i, token in enumerate(TOKENS):
            start = i - i % 16
            read = [V - 1, *TOKENS][start:i + 1]
            if isolate:
                begins = [n for n, each in enumerate(read) if each == V - 1]
                read = read[begins[-1] if begins else 0:]
            logprobs = model(torch.tensor([read]))[0, -1].log_softmax(-1)
            found.append((token, -float(logprobs[token]), len(read), float(logprobs.max().exp()),
                          int(logprobs.argmax()) == token))
    return found


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("name", ["default", "wide heads", "phi"])
def test_every_token_is_scored_as_if_by_hand(name, isolate):
    model = tiny_gpt(**ARCHITECTURES[name]).train()
    scored = score_tokens(model, windows(isolate), CPU)
    ids, losses, read, confidence, hits = zip(*by_hand(model.eval(), isolate), strict=True)
    assert scored.ids.tolist() == list(ids) and scored.read.tolist() == list(read)
    assert scored.hits.tolist() == list(hits)
    assert_close(torch.tensor(scored.losses), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    assert_close(torch.tensor(scored.confidence), torch.tensor(confidence), rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_training_and_the_model_goes_on_training():
    model = tiny_gpt(dropout=0.5).train()
    loss = evaluate(model, windows(), torch.ones(V), CPU).loss
    assert float(score_tokens(model, windows(), CPU).losses.mean()) == pytest.approx(loss, rel=1e-6)
    assert model.training


def spread() -> list[np.ndarray]:
    with joined("cpu") as ranks:
        machine = Machine(torch.device("cpu"), torch.float32, ranks=ranks, data=ranks, summed=ranks)
        scored = score_tokens(tiny_gpt(), windows(), machine)
        return [scored.ids, scored.losses, scored.read]


def test_replicas_score_some_batches_each_and_all_have_the_whole():
    alone = score_tokens(tiny_gpt(), windows(), CPU)
    for ids, losses, read in run_ranks(3, spread, join=False):  # four batches: two are done twice
        assert ids.tolist() == TOKENS and read.tolist() == alone.read.tolist()
        assert losses.tolist() == alone.losses.tolist()


def test_a_text_is_scored_in_pieces_of_any_size(monkeypatch):
    whole = score_tokens(tiny_gpt(), windows(), CPU)
    monkeypatch.setattr("gpt.evaluation.scored.PIECE", 7)
    assert_close(torch.tensor(score_tokens(tiny_gpt(), windows(), CPU).losses),
                 torch.tensor(whole.losses))
    assert END > V  # the text above has an end of its own
