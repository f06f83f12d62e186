"""Few tokens through all layers in C: what it computes is what gpt/model computes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.configuration import SamplingConfig
from gpt.generation import Engine, Request
from gpt.generation.native import NativeModel, fastest
from gpt.generation.native.library import library
from gpt.generation.native.model import _AT_ONCE, FEW, _Matrix
from gpt.machine.device import Machine
from gpt.model import GPT, KVCache
from gpt.model.int8 import Int8Linear, quantize, quantized
from tests.tiny import ARCHITECTURES, CPU, generate_tokens, random_tokens, tiny_gpt

# Widths that fill no vector, and more than the int32 of int8 products holds.
ODD = {"odd": {"n_embd": 44, "n_head": 2, "n_kv_head": 1, "n_inner": 37, "head_dim": 10,
               "vocab_size": 63},
       "odd gpt2": {**ARCHITECTURES["gpt2"], "n_embd": 27, "n_head": 3, "n_kv_head": 3,
                    "n_inner": 1201, "vocab_size": 5},
       "long": {"block_size": 300, "n_kv_head": 2, "window": 70, "window_pattern": "FS"},
       "long, wide heads": {"block_size": 300, "n_head": 2, "n_kv_head": 1, "head_dim": 74}}
KINDS = ARCHITECTURES | ODD
pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler")


def native(model: GPT, dtype: torch.dtype = torch.float32) -> NativeModel:
    found = fastest(model, dtype)
    assert isinstance(found, NativeModel)
    return found


def cache_of(model: GPT, lengths: list[int], dtype: torch.dtype = torch.float32) -> KVCache:
    """Rows that have read so many random tokens."""
    cache = KVCache(model.config, len(lengths), model.config.block_size, CPU.device, dtype)
    for row, length in enumerate(lengths):
        if length:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                model.hidden(random_tokens(1, length, vocab_size=model.vocab_size, seed=row),
                             cache.rows(row, row + 1))
    return cache


def halves(model: GPT) -> GPT:
    """The same, of bfloat16 weights."""
    return model.to(torch.bfloat16)


def rounded_to(model: GPT) -> GPT:
    """What an int8 model stands for, in float32."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            numbers, scale = quantized(layer.weight.detach(), torch.bfloat16)
            layer.weight = nn.Parameter(numbers * scale.float())
    return model


@pytest.mark.parametrize("lengths", [[0], [17], [9, 9, 9], [3, 0, 20, 11, 26]], ids=str)
@pytest.mark.parametrize("T", [1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_architecture_says_the_same(kind, T, lengths):
    model = tiny_gpt(**KINDS[kind])
    tokens = random_tokens(len(lengths), T, vocab_size=model.vocab_size, seed=9)
    cache, own = cache_of(model, lengths), cache_of(model, lengths)
    expected = model.hidden(tokens, cache)
    quick = native(model)
    found = quick.hidden(tokens, own)
    # Sums of up to 1,201 products around 1, in another order: 1e-6 of them, through two layers.
    assert_close(found, expected, rtol=0, atol=5e-5)
    assert_close(quick.logits(found), model.logits(expected), rtol=0, atol=1e-4)
    assert (own.lengths == cache.lengths).all()
    for ours, theirs in zip([*own.keys, *own.values], [*cache.keys, *cache.values], strict=True):
        assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", ["long", "long, wide heads"])
@torch.inference_mode()
def test_texts_longer_than_attention_reads_at_a_time_are_read_whole(kind):
    model = tiny_gpt(**ODD[kind])
    for lengths in ([63], [64], [65], [130, 257, 299]):
        tokens = random_tokens(len(lengths), 1, seed=3)
        expected = model.hidden(tokens, cache_of(model, lengths))
        found = native(model).hidden(tokens, cache_of(model, lengths))
        assert_close(found, expected, rtol=0, atol=5e-5)
        blind = cache_of(model, lengths)
        for keys in blind.keys:
            keys[:, :, 0] += 1
        assert (native(model).hidden(tokens, blind) - found).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_bfloat16_weights_and_caches_are_read_as_the_numbers_they_are(kind):
    exact = halves(tiny_gpt(**KINDS[kind])).float()  # weights that bfloat16 can say
    model, lengths = halves(tiny_gpt(**KINDS[kind])), [3, 0, 20]
    tokens = random_tokens(3, 1, vocab_size=model.vocab_size, seed=9)
    before = cache_of(exact, lengths)
    cache = KVCache(model.config, 3, model.config.block_size, CPU.device, torch.bfloat16)
    for ours, theirs in zip([*cache.keys, *cache.values], [*before.keys, *before.values],
                            strict=True):
        theirs.copy_(theirs.bfloat16())  # so that both have read the same
        ours.copy_(theirs)
    cache.lengths[:] = before.lengths
    expected = exact.hidden(tokens, before)
    quick = native(model, torch.bfloat16)
    found = quick.hidden(tokens, cache)
    assert found.dtype == torch.float32
    # The token's own key and value are rounded, by 2^-9 of up to 4, and weigh at most 1.
    assert_close(found, expected, rtol=0, atol=0.05)
    assert (found - expected).std() < 0.01 * expected.std()
    assert_close(quick.logits(found), exact.logits(found), rtol=0, atol=1e-4)
    first = torch.stack([cache.keys[0][r, :, n] for r, n in enumerate(lengths)])
    assert_close(first.float(), torch.stack([before.keys[0][r, :, n]
                                             for r, n in enumerate(lengths)]).bfloat16().float(),
                 rtol=2**-7, atol=1e-6)


@torch.inference_mode()
def test_keys_and_values_are_rounded_to_bfloat16_as_torch_does():
    model = halves(tiny_gpt(n_head=1, n_kv_head=1, head_dim=8, bias=True, position="none"))
    layer = model.blocks[0].attention.qkv_proj
    # Halfway between two bfloat16, to the even one; next to it; too large; not a number.
    odd = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.4e38,
                        torch.inf, torch.nan, 0])
    odd.view(torch.int32)[7] = 0x7fffffff  # whose bits would round up to those of -0
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    layer.bias = nn.Parameter(torch.cat([torch.zeros(16), odd]))
    cache = KVCache(model.config, 1, 4, CPU.device, torch.bfloat16)
    native(model, torch.bfloat16).hidden(random_tokens(1, 1), cache)
    assert torch.equal(cache.values[0][0, 0, 0].nan_to_num(nan=7, posinf=8),
                       odd.bfloat16().nan_to_num(nan=7, posinf=8))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_int8_matrices_are_multiplied_as_what_they_stand_for(kind):
    model, exact = tiny_gpt(**KINDS[kind]), tiny_gpt(**{**KINDS[kind], "tie_embeddings": False})
    exact.load_state_dict(model.state_dict() | {"lm_head.weight": model.output_weight})
    exact, lengths = rounded_to(exact), [3, 0, 20]
    quantize(model)
    tokens = random_tokens(3, 2, vocab_size=model.vocab_size, seed=9)
    expected = exact.logits(exact.hidden(tokens, cache_of(exact, lengths)))
    quick = native(model)
    found = quick.logits(quick.hidden(tokens, cache_of(exact, lengths)))
    # Inputs are rounded by half of 1/32,767 of their largest.
    assert_close(found, expected, rtol=0, atol=5e-4)
    assert (found - expected).std() < 2e-4 * expected.std()


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["default", "odd", "gpt2"])
@torch.inference_mode()
def test_a_token_is_the_same_to_the_last_bit_whoever_shares_its_call(kind, format):
    model = tiny_gpt(**KINDS[kind])
    if format == "int8":
        quantize(model)
    dtype = torch.float32
    if format == "bfloat16":
        model, dtype = halves(model), torch.bfloat16
    quick, lengths = native(model, dtype), [3, 0, 20, 11, 26, 3, 7]
    tokens = random_tokens(len(lengths), 3, vocab_size=model.vocab_size, seed=9)
    together = quick.hidden(tokens, cache_of(model, lengths, dtype))
    scores = quick.logits(together)
    for row, length in enumerate(lengths):
        cache = cache_of(model, [*[5] * row, length], dtype).rows(row, row + 1)
        cache.keys = [each.clone() for each in cache_of(model, lengths, dtype).rows(
            row, row + 1).keys]
        cache.values = [each.clone() for each in cache_of(model, lengths, dtype).rows(
            row, row + 1).values]
        for t in range(3):
            alone = quick.hidden(tokens[row:row + 1, t:t + 1], cache)
            assert torch.equal(alone[0, 0], together[row, t])
            assert torch.equal(quick.logits(alone)[0, 0], scores[row, t])


@torch.inference_mode()
def test_threads_change_no_bit():
    model, threads = tiny_gpt(), torch.get_num_threads()
    tokens, results = random_tokens(5, 2, seed=9), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            quick = native(model)
            results.append(quick.logits(quick.hidden(tokens, cache_of(model, [4, 4, 4, 4, 4]))))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def product(weight: Tensor, x: Tensor, scale: Tensor | None = None,
            bias: Tensor | None = None) -> Tensor:
    """One matrix, by products.h."""
    y = torch.full((len(x), len(weight)), torch.nan)
    matrix = _Matrix(weight=weight.data_ptr(), outputs=weight.size(0), inputs=weight.size(1),
                     scale=None if scale is None else scale.data_ptr(),
                     bias=None if bias is None else bias.data_ptr(),
                     format={torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}[weight.dtype])
    functions = library()
    assert functions is not None
    assert functions.product(ctypes.byref(matrix), ctypes.c_void_p(x.data_ptr()),
                             ctypes.c_int64(len(x)), ctypes.c_void_p(y.data_ptr())) == 0
    return y


@pytest.mark.parametrize("inputs", [1, 7, 8, 16, 33, 64, 511, 512, 513, 4000])
@pytest.mark.parametrize("outputs", [1, 3, 4, 9])
@pytest.mark.parametrize("N", [1, 2, 4, 7, 9])
def test_products_of_every_size(N, outputs, inputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, inputs, generator=generator)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs)
    exact = x.double() @ weight.double().T + bias.double()
    near = 1e-6 * inputs**0.5 + 1e-6
    assert_close(product(weight, x, bias=bias).double(), exact, rtol=0, atol=near * 4)
    less = weight.bfloat16()
    assert_close(product(less, x, bias=bias).double(), x.double() @ less.double().T + bias.double(),
                 rtol=0, atol=near * 4)
    numbers, scale = quantized(weight)
    exact = x.double() @ (numbers * scale.double()).T + bias.double()
    # Each input is off by half of 1/32,767 of the largest, which is below 5, times up to 4.
    assert_close(product(numbers, x, scale.flatten(), bias).double(), exact, rtol=0,
                 atol=3e-4 * inputs**0.5)


def test_int8_products_of_the_largest_numbers_do_not_overflow():
    for inputs in (512, 513, 1024, 5000):
        numbers, x = torch.full((4, inputs), -127, dtype=torch.int8), torch.full((1, inputs), 3.0)
        assert_close(product(numbers, x, torch.ones(4)), torch.full((1, 4), -127 * 3.0 * inputs))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_does_not_become_one(bad):
    x = torch.ones(3, 40)
    x[1, 11] = bad
    for weight, scale in ((torch.ones(4, 40), None), (torch.ones(4, 40).bfloat16(), None),
                          (torch.ones(4, 40).to(torch.int8), torch.ones(4))):
        found = product(weight, x, scale)
        assert not found[1].isfinite().any() and (found[[0, 2]] == 40).all()


def test_zeros_stay_zeros_in_int8_and_what_is_next_to_nothing_next_to_nothing():
    ones = torch.ones(4, 40, dtype=torch.int8)
    assert (product(ones, torch.zeros(2, 40), torch.ones(4)) == 0).all()
    for small in (1e-45, 1e-38, 1e-30, 1e-25):
        assert_close(product(ones, torch.full((1, 40), small), torch.ones(4)),
                     torch.full((1, 4), 40 * small), rtol=1e-4, atol=1e-28)


@torch.inference_mode()
def test_more_tokens_of_a_text_than_a_few_and_prompts_read_both_ways_are_left_to_torch(monkeypatch):
    model = tiny_gpt(block_size=64)
    quick, called = native(model), []
    monkeypatch.setattr(GPT, "hidden", lambda self, tokens, *args, **more: called.append(
        tokens.shape))
    for rows, T in ((1, FEW), (50, 2), (1, FEW + 1), (150, 1)):
        quick.hidden(random_tokens(rows, T), cache_of(model, [0] * rows))
    assert called == [(1, FEW + 1)]
    quick.hidden(random_tokens(1, 2), cache_of(model, [0]), prompts=torch.ones(1, 2).bool())
    assert called[1:] == [(1, 2)]


@pytest.mark.parametrize(("rows", "T"), [(_AT_ONCE, 1), (_AT_ONCE + 1, 1), (150, 2), (5, FEW)])
@torch.inference_mode()
def test_many_texts_are_read_in_parts(rows, T):
    model, tokens = tiny_gpt(), random_tokens(rows, T, seed=5)
    caches = [KVCache(model.config, rows, 32, CPU.device, torch.float32) for _ in range(2)]
    quick = native(model)
    for _ in range(2):
        together = quick.hidden(tokens, caches[0])
        alone = torch.cat([quick.hidden(tokens[row:row + 1], caches[1].rows(row, row + 1))
                           for row in range(rows)])
        assert together.shape == (rows, T, 32) and torch.equal(together, alone)
    assert (caches[0].lengths == 2 * T).all() and (caches[1].lengths == 2 * T).all()
    assert torch.equal(quick.logits(together), torch.cat([quick.logits(row) for row in alone]
                                                         ).view(rows, T, -1))


@pytest.mark.parametrize("rows", [1, 3, _AT_ONCE + 1])
@torch.inference_mode()
def test_long_bfloat16_prompts_are_read_in_parts_where_torch_would_be_slow(rows, monkeypatch):
    monkeypatch.setattr("gpt.generation.native.model.computes_in_bfloat16", lambda device: False)
    model, called = halves(tiny_gpt(**ODD["long"])), []
    quick, tokens = native(model, torch.bfloat16), random_tokens(rows, 100)
    monkeypatch.setattr(GPT, "hidden", lambda *args, **more: called.append(True))
    cache = KVCache(model.config, rows, 300, CPU.device, torch.bfloat16)
    found = quick.hidden(tokens, cache)
    assert not called and (cache.lengths == 100).all()
    again = KVCache(model.config, rows, 300, CPU.device, torch.bfloat16)
    alone = [quick.hidden(tokens[:, t:t + 1], again) for t in range(100)]
    assert torch.equal(torch.cat(alone, dim=1), found)
    for wrong, error in ((random_tokens(rows, 201), ValueError), (tokens + 900, IndexError)):
        with pytest.raises(error):
            quick.hidden(wrong, cache)
        assert (cache.lengths == 100).all()
    late = tokens.clone()
    late[-1, -1] = -1
    with pytest.raises(IndexError):
        quick.hidden(late, cache)
    assert (cache.lengths == 100).all()
    monkeypatch.setattr("gpt.generation.native.model.computes_in_bfloat16", lambda device: True)
    native(model, torch.bfloat16).hidden(tokens, cache)
    assert called == [True]


@pytest.mark.parametrize("computes", [True, False])
def test_batch_mates_never_matter_in_bfloat16_either(computes, monkeypatch):
    monkeypatch.setattr("gpt.generation.native.model.computes_in_bfloat16", lambda device: computes)
    model, machine = halves(tiny_gpt(block_size=64)), Machine(torch.device("cpu"), torch.bfloat16)
    requests = [Request(random_tokens(1 + 5 * i % 23, seed=i).tolist(),
                        SamplingConfig(seed=i, max_new_tokens=20)) for i in range(80)]

    def made(requests):
        texts = {}
        engine = Engine(model, machine, rows=70)
        for index, new in engine.run(requests):
            texts.setdefault(index, []).append((new.token, new.logprob))
        return [texts[i] for i in range(len(requests))]

    assert made(requests) == [made([request])[0] for request in requests]


@torch.inference_mode()
def test_a_full_context_is_refused_as_ever():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="longer than block_size"):
        native(model).hidden(random_tokens(1, 2), cache_of(model, [31]))
    short = KVCache(model.config, 1, 8, CPU.device, torch.float32)
    with pytest.raises(ValueError, match="does not fit into a cache of 8"):
        native(model).hidden(random_tokens(1, 9), short)
    assert short.lengths[0] == 0


def scaled(value):
    def change(model):
        model.blocks[1].residual_scale = value
    return change


def hook(model):
    model.blocks[1].register_forward_hook(lambda module, args, out: out + 1)


def hook_before(model):
    model.blocks[0].attention.qkv_proj.register_forward_pre_hook(lambda module, args: args[0] + 1)


def replace(name, make):
    return lambda model: model.set_submodule(name, make(model.get_submodule(name)))


def put(name, attribute, value):
    return lambda model: setattr(model.get_submodule(name), attribute, value)


def transpose(model):
    layer = model.blocks[0].attention.out_proj
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)


def widen(model):
    model.blocks[0].feedforward.up_proj = nn.Linear(32, 400, bias=False)
    model.blocks[0].feedforward.down_proj = nn.Linear(200, 32, bias=False)


class Wrapped(torch.Tensor):
    """A weight that computes in its own way, as quantised ones of other libraries do."""


# What users do to a model: each does something else than it was built to do.
CHANGES = {
    "hook": hook, "hook before": hook_before, "transposed": transpose, "widened": widen,
    "forward": put("blocks.0.feedforward", "forward", lambda x: x * 0),
    "hidden": put("", "hidden", lambda *args, **more: None),
    "activation": put("blocks.0.feedforward", "_activate", lambda h: h[..., :96]),
    "epsilon": put("final_norm", "eps", 0.5), "scale": scaled(2.0),
    "another class": replace("blocks.0.attention.out_proj", nn.Sequential),
    "no norm": replace("blocks.1.attention_norm", lambda norm: nn.Identity()),
    "plain norm": replace("final_norm", lambda norm: nn.RMSNorm(32, elementwise_affine=False)),
    "another norm": replace("blocks.0.attention.q_norm", lambda norm: nn.LayerNorm(8)),
    "larger head": replace("lm_head", lambda head: nn.Linear(32, 99, bias=False)),
    "head with a bias": replace("lm_head", lambda head: nn.Linear(32, 61)),
    "larger table": replace("embedding.token_embedding", lambda table: nn.Embedding(99, 32)),
    "fewer layers": put("", "blocks", nn.ModuleList()),
    "parametrized": lambda model: nn.utils.parametrizations.weight_norm(
        model.blocks[0].feedforward.up_proj),
    "wrapped": lambda model: put("blocks.0.attention.qkv_proj", "weight", nn.Parameter(
        model.blocks[0].attention.qkv_proj.weight.detach().as_subclass(Wrapped)))(model),
    "float16": GPT.half, "float64": GPT.double,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_is_read_as_it_is(change):
    model = tiny_gpt()
    assert isinstance(fastest(model, torch.float32), NativeModel)
    CHANGES[change](model)
    assert fastest(model, torch.float32) is model


def test_a_model_that_drops_is_read_as_it_is():
    model = tiny_gpt(dropout=0.1)
    assert isinstance(fastest(model, torch.float32), NativeModel)
    model.blocks[1].attention.train()
    assert fastest(model, torch.float32) is model
    assert isinstance(fastest(tiny_gpt().train(), torch.float32), NativeModel)


@pytest.mark.parametrize("move", [
    lambda model: model.to(torch.bfloat16), lambda model: model.to("meta"),
    lambda model: model.load_state_dict(tiny_gpt(seed=1, position="learned").state_dict(),
                                        assign=True)])
@torch.inference_mode()
def test_weights_that_are_replaced_meanwhile_are_still_there(move):
    model, tokens = tiny_gpt(position="learned"), random_tokens(2, 1)
    quick, cache = native(model), cache_of(model, [4, 4])
    again = cache_of(model, [4, 4])
    expected = quick.logits(quick.hidden(tokens, cache))
    move(model)
    torch.randn(100_000)  # takes memory that is free
    assert torch.equal(quick.logits(quick.hidden(tokens, again)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_the_default_of_new_tensors_does_not_matter(dtype):
    model, tokens = tiny_gpt(), random_tokens(2, 2)
    expected = native(model).hidden(tokens, cache_of(model, [4, 4]))
    cache = cache_of(model, [4, 4])
    torch.set_default_dtype(dtype)
    try:
        quick = native(model)
        found = quick.hidden(tokens, cache)
        assert quick.logits(found).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_token_ids_may_be_of_any_integer_type():
    model, tokens = tiny_gpt(), random_tokens(2, 3)
    expected = native(model).hidden(tokens, cache_of(model, [4, 4]))
    assert torch.equal(native(model).hidden(tokens.int(), cache_of(model, [4, 4])), expected)


@pytest.mark.parametrize("position", ["rope", "sinusoidal", "learned"])
@torch.inference_mode()
def test_a_longer_cache_has_its_own_places(position):
    model = tiny_gpt(position=position, block_size=300)
    quick, tokens = native(model), random_tokens(1, 250)
    for length in (4, 250):
        cache = KVCache(model.config, 1, length, CPU.device, torch.float32)
        for token in tokens[:, :length].split(1, dim=1):
            found = quick.hidden(token, cache)
        expected = model.hidden(tokens[:, :length])[:, -1:]
        assert_close(found, expected, rtol=0, atol=5e-5)


@torch.inference_mode()
def test_texts_and_rows_are_as_many():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="3 texts do not go on those of 2 rows"):
        native(model).hidden(random_tokens(3, 1), cache_of(model, [4, 4]))


def test_a_cache_in_float16_is_left_to_torch():
    model = tiny_gpt()
    assert fastest(model, torch.float16) is model


def test_what_is_changed_in_a_model_changes_what_is_generated():
    model, config = tiny_gpt(), SamplingConfig(temperature=0, max_new_tokens=8)
    before = list(generate_tokens(model, [1, 2], config))
    handle = model.blocks[0].register_forward_hook(lambda module, args, out: -out)
    hooked = list(generate_tokens(model, [1, 2], config))
    handle.remove()
    assert hooked != before and list(generate_tokens(model, [1, 2], config)) == before
    with torch.no_grad():
        model.blocks[0].attention.qkv_proj.weight.mul_(-1)
    assert list(generate_tokens(model, [1, 2], config)) != before


def test_engines_beams_and_drafts_use_it(monkeypatch):
    from gpt.generation import DraftModel, beam_search
    used = []
    monkeypatch.setattr(NativeModel, "hidden",
                        lambda self, tokens, cache, prompts=None: used.append(tokens.shape) or
                        self.model.hidden(tokens, cache, prompts=prompts))
    model = tiny_gpt()
    request = Request([1, 2, 3], SamplingConfig(temperature=0, max_new_tokens=3))
    list(Engine(model, CPU, rows=1).run([request]))
    assert used == [(1, 3), (1, 1), (1, 1)]
    used.clear()
    beam_search(model, Request([1, 2], SamplingConfig(beams=2, max_new_tokens=2)), CPU)
    assert used == [(1, 2), (2, 1)]
    used.clear()
    list(Engine(model, CPU, rows=1, draft=DraftModel(tiny_gpt(seed=1), CPU)).run([request]))
    assert len(used) > 3


@pytest.mark.parametrize("token", [-1, 61, 2**40])
def test_an_unknown_token_is_an_error(token):
    model = tiny_gpt()
    with pytest.raises(IndexError, match="negative, or not below 61"), torch.inference_mode():
        native(model).hidden(torch.tensor([[3, token]]), cache_of(model, [0]))


def test_a_refusal_of_memory_is_an_error():
    class Full:
        def hidden(self, *args):
            return 1

    model = tiny_gpt()
    quick = NativeModel(model, Full())  # type: ignore[arg-type]
    with pytest.raises(MemoryError), torch.inference_mode():
        quick.hidden(random_tokens(1, 1), cache_of(model, [0]))


def test_structures_are_those_of_the_c_file():
    # One token of a model whose every field differs from the others.
    model = tiny_gpt(n_layer=3, n_head=6, n_kv_head=2, n_embd=20, head_dim=4, n_inner=29,
                     norm_eps=1e-2, residual_scale=0.7, mlp="relu2", bias=True, window=3)
    with torch.inference_mode():
        expected = model(random_tokens(2, 5))
        cache = KVCache(model.config, 2, 9, CPU.device, torch.float32)
        quick = native(model)
        steps = [quick.logits(quick.hidden(tokens, cache))
                 for tokens in random_tokens(2, 5).split(1, dim=1)]
    assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-4)
    assert isinstance(cache.lengths, np.ndarray) and cache.lengths.tolist() == [5, 5]
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
