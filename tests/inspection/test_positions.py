"""The encoding of positions is the one that the model uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from gpt.inspection import position_encoding
from tests.inspection.by_hand import waves
from tests.tiny import ARCHITECTURES, tiny_gpt


def test_tables_are_what_is_added():
    model = tiny_gpt(**ARCHITECTURES["vaswani"])
    found = position_encoding(model, 9)
    assert found.kind == "sinusoidal" and found.frequencies is None
    assert_allclose(found.table, waves(9, 32), atol=1e-6)
    model = tiny_gpt(**ARCHITECTURES["gpt2"])
    found = position_encoding(model, 9)
    tokens, places = torch.zeros(1, 9, dtype=torch.int64), torch.arange(9)
    with torch.no_grad():
        added = model.embedding(tokens, places) - model.embedding.token_embedding(tokens)
    assert found.kind == "learned"
    assert_allclose(found.table, added[0], atol=1e-7)
    found.table[:] = 0  # a copy
    assert model.embedding.position_embedding.weight[:9].any()


def test_frequencies_are_radians_per_token():
    found = position_encoding(tiny_gpt(rope_base=100.0), 9)
    assert found.kind == "rope" and found.table is None
    assert_allclose(found.frequencies, [1, 100 ** -0.25, 0.1, 100 ** -0.75], rtol=1e-6)
    scaled = position_encoding(tiny_gpt(**ARCHITECTURES["llama"]), 9).frequencies
    assert np.isclose(scaled[-1], 10_000 ** -0.75 / 4) and scaled[0] < 1


def test_a_model_without_positions_has_none_and_too_many_are_refused():
    found = position_encoding(tiny_gpt(**ARCHITECTURES["multi-query"]), 9)
    assert (found.kind, found.table, found.frequencies) == ("none", None, None)
    with pytest.raises(ValueError, match="33 tokens is longer than block_size"):
        position_encoding(tiny_gpt(), 33)
