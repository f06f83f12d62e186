"""Blocks for FlexAttention say what the masks say, and a compiled step reads by them on CUDA."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import flex_attention
from torch.testing import assert_close

from gpt.model import blockwise
from gpt.model.blockwise import reads_blockwise, visible_blocks
from gpt.model.visibility import visible_keys, visible_within
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt

T = 32
SEGMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 16, [0] * T, [0, 1, 2, 3] + [4] * 28])
PROMPTS = torch.zeros(3, T, dtype=torch.bool)
PROMPTS[0, :4] = PROMPTS[1, :20] = PROMPTS[2, 4:12] = True
CPU = torch.device("cpu")
KINDS = {"one text": (None, None), "documents": (SEGMENTS, None), "prompts": (None, PROMPTS),
         "documents with prompts": (SEGMENTS, PROMPTS)}


def whole(segments, prompts):
    """Prompts alone are those of a row that is one document."""
    return torch.zeros_like(SEGMENTS) if segments is None and prompts is not None else segments


@pytest.mark.parametrize("window", [None, 1, 5, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_let_each_query_read_what_the_mask_lets_it_read(kind, window):
    segments, prompts = KINDS[kind]
    segments = whole(segments, prompts)
    blocks = visible_blocks(T, window, CPU, segments, prompts)
    mask = (visible_keys(T, T, window, CPU) if segments is None else
            visible_within(segments, window, prompts).squeeze(1))
    if blocks is None:
        assert mask is None
        return
    places = torch.arange(T)
    found = blocks.mask_mod(torch.arange(3).view(-1, 1, 1), torch.tensor(0), places.view(-1, 1),
                            places)
    assert torch.equal(found.expand(3, T, T), mask.expand(3, T, T))
    assert 0 < mask.sum() < mask.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_a_stretch_let_it_read_what_it_reads_in_the_whole(kind):
    segments, prompts = KINDS[kind]
    segments = whole(segments, prompts)
    queries, keys, places = slice(12, 20), slice(6, 29), torch.arange(T)
    of_row = visible_blocks(T, 5, CPU, segments, prompts)
    of_stretch = visible_blocks(T, 5, CPU, segments, prompts, queries, keys)
    assert of_stretch.shape[-2:] == (8, 23)
    rows = torch.arange(3).view(-1, 1, 1), torch.tensor(0)
    part = of_stretch.mask_mod(*rows, places[:8].view(-1, 1), places[:23])
    assert torch.equal(part, of_row.mask_mod(*rows, places[queries].view(-1, 1), places[keys]))
    assert visible_blocks(T, None, CPU, None, None, queries, slice(0, 20)) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_reads_the_same_by_blocks_as_by_masks(name, kind):
    model, tokens, (segments, prompts) = tiny_gpt(**ARCHITECTURES[name]), random_tokens(3, T), \
        KINDS[kind]
    model.train()
    with torch.no_grad():
        by_masks = model.hidden(tokens, None, segments, prompts)
        model._compiled = functools.partial(model._hidden, blockwise=True)
        by_blocks = model.hidden(tokens, None, segments, prompts)
    # The same products in another order: a few float32 roundings of values around 1.
    assert_close(by_blocks, by_masks, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_step_by_blocks_has_the_gradients_of_masks(recompute, monkeypatch):
    """Traced and differentiated as on CUDA; only the kernels are a processor's."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    model, tokens = tiny_gpt(window=5, window_pattern="SF").train(), random_tokens(3, T)
    model.recompute = recompute

    def gradients():
        model.zero_grad()
        read = model.hidden(tokens, segments=SEGMENTS, prompts=PROMPTS)
        (read * torch.linspace(-1, 1, read.numel()).view_as(read)).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters()
                if weight.grad is not None}

    by_masks = gradients()
    monkeypatch.setattr(blockwise, "reads_blockwise", lambda *where: True)
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return aot_eager(graph, inputs)

    model.compile(backend=compiler, fullgraph=True)
    by_blocks = gradients()
    assert "flex_attention" in "".join(graphs) and by_blocks.keys() == by_masks.keys()
    for name, gradient in by_masks.items():
        assert_close(by_blocks[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_blocks_serve_where_flex_attention_has_kernels():
    cuda = torch.device("cuda")
    assert reads_blockwise(tiny_config(head_dim=16), cuda)
    assert not reads_blockwise(tiny_config(head_dim=16), CPU)
    assert not reads_blockwise(tiny_config(head_dim=8), cuda)
    assert not reads_blockwise(tiny_config(head_dim=16, dropout=0.1), cuda)
