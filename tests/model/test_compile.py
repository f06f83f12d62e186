"""Which steps run compiled."""

from __future__ import annotations

import torch

from tests.tiny import random_tokens, tiny_gpt


def test_training_alone_runs_compiled(monkeypatch):
    """Generation would have every length compiled anew."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args, **kwargs: (
        calls.append(function) or function(*args, **kwargs)))
    model, tokens = tiny_gpt(), random_tokens(2, 8)
    expected = model(tokens)
    model.compile()
    assert torch.equal(model(tokens), expected) and not calls
    model.train()
    assert torch.equal(model(tokens), expected) and len(calls) == 1
    model.eval()(tokens)
    assert len(calls) == 1
