"""Reading in portions is reading at once, however a text is cut and whatever slides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.testing import assert_close

from gpt.model import GPT, KVCache
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt

CPU = torch.device("cpu")
# Sums of up to 128 products in another order: a few float32 roundings of values around 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
SLIDING = {"all slide": {"window": 3}, "one slides": {"window": 3, "window_pattern": "FS"},
           "each reads itself": {"window": 1}, "beyond the text": {"window": 30},
           "learned": {"window": 2, "position": "learned", "n_kv_head": 1}}


def cache_for(model: GPT, batch_size: int, max_tokens: int = 32) -> KVCache:
    return KVCache(model.config, batch_size, max_tokens, CPU, torch.float32)


def in_portions(model: GPT, tokens: torch.Tensor, portions: list[int]) -> torch.Tensor:
    cache = cache_for(model, len(tokens))
    parts = [model(part, cache) for part in tokens.split(portions, dim=1)]
    assert set(cache.lengths) == {tokens.size(1)}
    return torch.cat(parts, dim=1)


def cuts(length: int) -> Iterator[list[int]]:
    """Every way of cutting a text into portions: 2^(length - 1) of them."""
    if length == 0:
        yield []
    for first in range(1, length + 1):
        yield from ([first, *rest] for rest in cuts(length - first))


@pytest.mark.parametrize("changes", [*ARCHITECTURES.values(), *SLIDING.values()],
                         ids=[*ARCHITECTURES, *SLIDING])
@pytest.mark.parametrize("portions", [[7, 1, 1, 5, 6], [1] * 20, [19, 1], [1, 19]], ids=str)
@torch.no_grad()
def test_reading_in_portions_through_the_cache_gives_the_logits_of_reading_at_once(
        changes, portions):
    model, tokens = tiny_gpt(**changes), random_tokens(2, 20)
    assert_close(in_portions(model, tokens, portions), model(tokens), **ROUNDING)


@pytest.mark.parametrize("changes", SLIDING.values(), ids=SLIDING)
@torch.no_grad()
def test_a_window_slides_over_every_way_of_cutting_a_text(changes):
    model, tokens = tiny_gpt(**changes), random_tokens(1, 8)
    whole, tried = model(tokens), 0
    for portions in cuts(8):
        assert_close(in_portions(model, tokens, portions), whole, **ROUNDING)
        tried += 1
    assert tried == 128
    everything = tiny_gpt(**{**changes, "window": None, "window_pattern": "S"})(tokens)
    assert torch.equal(everything, whole) == (model.config.window > 8)


@torch.no_grad()
def test_a_model_that_computes_layers_again_in_training_reads_its_cache_too():
    model, tokens = tiny_gpt().train(), random_tokens(2, 8)
    model.recompute = True
    assert_close(in_portions(model, tokens, [3, 1, 4]), model(tokens), **ROUNDING)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_a_layer_gives_back_the_keys_and_values_that_the_new_queries_may_read(window):
    config, generator = tiny_config(n_kv_head=2, window=window), torch.Generator().manual_seed(0)
    for portions in cuts(6):
        cache = KVCache(config, 2, 6, CPU, torch.float32)
        keys, values = torch.randn(2, 2, 2, 6, 8, generator=generator)  # (B, n_kv_head, S, D)
        stop = 0
        for T in portions:
            start, stop = stop, stop + T
            first = 0 if window is None else max(0, start - window + 1)
            k, v = cache.layers(T)[0].append(keys[:, :, start:stop], values[:, :, start:stop])
            cache.advance(T)
            assert torch.equal(k, keys[:, :, first:stop])
            assert torch.equal(v, values[:, :, first:stop])


def test_every_layer_has_its_own_window_and_the_asked_for_room():
    model = tiny_gpt(n_layer=3, window=2, window_pattern="FS", n_kv_head=1, head_dim=6)
    cache = KVCache(model.config, 3, 7, CPU, torch.float64)
    k = torch.ones(3, 1, 7, 6)
    cache.advance(6)
    for layer, reach in zip(cache.layers(1), (7, 2, 7), strict=True):
        for found in layer.append(k[:, :, :1], k[:, :, :1]):
            assert found.shape == (3, 1, reach, 6) and found.dtype == torch.float64


def test_a_full_cache_refuses_more_tokens_by_its_size():
    """Writing one token past the end would be no error in torch, and would lose its key."""
    model, tokens = tiny_gpt(), random_tokens(1, 9)
    cache = cache_for(model, 1, max_tokens=8)
    model(tokens[:, :8], cache)
    with pytest.raises(ValueError, match="9 tokens does not fit into a cache of 8"):
        model(tokens[:, 8:], cache)
    assert cache.lengths.tolist() == [8]


def test_a_cached_text_ends_at_block_size():
    model, cache = tiny_gpt(), cache_for(tiny_gpt(), 1, max_tokens=50)
    model(random_tokens(1, 31), cache)
    model(random_tokens(1, 1), cache)
    with pytest.raises(ValueError, match=r"33 tokens is longer than block_size \(32\)"):
        model(random_tokens(1, 1), cache)


@pytest.mark.parametrize("changes", [*ARCHITECTURES.values(), *SLIDING.values()],
                         ids=[*ARCHITECTURES, *SLIDING])
@torch.no_grad()
def test_rows_of_different_lengths_are_read_as_if_each_were_alone(changes):
    model = tiny_gpt(**changes)
    texts = [random_tokens(length, seed=length) for length in (3, 9, 1, 14)]
    cache = cache_for(model, 4)
    for row, text in enumerate(texts):
        if len(text) > 2:
            model(text[None, :-2], cache.rows(row, row + 1))
    lengths = cache.lengths.tolist()
    assert lengths == [1, 7, 0, 12]
    new = torch.stack([torch.cat([text, random_tokens(2)])[start:start + 2]
                       for text, start in zip(texts, lengths, strict=True)])
    for T in (2, 1):
        cache.lengths[:] = lengths
        found = model(new[:, :T], cache)
        for row, text in enumerate(texts):
            whole = torch.cat([text[:lengths[row]], new[row, :T]])
            assert_close(found[row], model(whole[None])[0, -T:], **ROUNDING)


@torch.no_grad()
def test_a_copied_or_reordered_row_goes_on_as_the_one_it_came_from():
    model, texts = tiny_gpt(), random_tokens(3, 6)
    cache = cache_for(model, 4)
    model(texts, cache.rows(0, 3))
    cache.copy_row(1, 3)
    expected = model(torch.cat([texts, texts[1:2]])[:, [0, 1, 2, 3, 4, 5, 0]])[:, -1]
    following = torch.cat([texts, texts[1:2]])[:, :1]
    kept = cache.lengths.copy()
    assert_close(model(following, cache)[:, -1], expected, **ROUNDING)
    cache.lengths[:] = kept
    cache.reorder(torch.tensor([2, 0, 3]))
    found = model(following[[2, 0, 3, 3]], cache)[:, -1]
    assert_close(found, expected[[2, 0, 3, 3]], **ROUNDING)


@torch.no_grad()
def test_rows_of_different_lengths_are_reordered_with_their_lengths():
    model = tiny_gpt()
    texts, cache = [random_tokens(length, seed=length) for length in (5, 9, 2)], cache_for(model, 3)
    for row, text in enumerate(texts):
        model(text[None], cache.rows(row, row + 1))
    cache.reorder(torch.tensor([1, 2]))
    assert cache.lengths.tolist() == [9, 2, 2]
    found = model(torch.tensor([[7], [7], [7]]), cache)[:, -1]
    for row, text in enumerate((texts[1], texts[2], texts[2])):
        whole = torch.cat([text, torch.tensor([7])])
        assert_close(found[row], model(whole[None])[0, -1], **ROUNDING)


@torch.no_grad()
def test_what_was_in_memory_before_is_not_read(monkeypatch):
    """Attention multiplies what is hidden by 0, and 0 · NaN is NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: (
        empty(*args, **kwargs).fill_(torch.nan)))
    model, cache = tiny_gpt(), cache_for(tiny_gpt(), 2)
    model(random_tokens(1, 5), cache.rows(0, 1))
    assert model(random_tokens(2, 1), cache).isfinite().all()
