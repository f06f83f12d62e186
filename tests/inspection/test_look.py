"""What is said of a pass is what happens in it: against the same, computed by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from gpt.configuration import AdapterConfig
from gpt.errors import UserError
from gpt.inspection import look_at
from gpt.inspection.look import _matrix
from gpt.inspection.recording import record
from gpt.language_model import LanguageModel, load
from gpt.model import lora
from gpt.model.int8 import Int8Linear, quantize
from gpt.tokenizer import build_tokenizer
from tests.inspection.by_hand import read_by_hand, scores_by_hand
from tests.interop.models import saved
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt

BYTES = build_tokenizer("byte")
TOKENS = random_tokens(24, seed=1).tolist()
# Of sums of a hundred numbers of size 1 in float32, through two layers, and of a few more in norms.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module", params=[(name, both_ways) for name in ARCHITECTURES
                                        for both_ways in (False, True)], ids=str)
def looked(request):
    name, both_ways = request.param
    model = tiny_gpt(**ARCHITECTURES[name])
    return model, look_at(model, BYTES, TOKENS, both_ways), read_by_hand(model, TOKENS, both_ways)


def test_attention_is_that_of_the_formula(looked):
    model, look, by_hand = looked
    assert look.attention.shape == (2, 4, 24, 24) and look.attention.dtype == np.float32
    assert_allclose(look.attention, by_hand.attention, **CLOSE)
    assert_allclose(look.attention.sum(-1), 1, atol=1e-6)
    # No look at the future, and the windows are seen.
    causal = read_by_hand(model, TOKENS).attention
    assert not causal.triu(1).any()
    assert (np.triu(look.attention, 1) > 0).any() == (not np.allclose(look.attention, causal))


def test_the_residual_stream_and_what_is_added_to_it_are_as_long_as_by_hand(looked):
    _, look, by_hand = looked
    for found, expected in ((look.residual_norms, by_hand.streams),
                            (look.attention_norms, by_hand.attended),
                            (look.feedforward_norms, by_hand.fed)):
        assert_allclose(found, expected.norm(dim=-1), **CLOSE)
        assert found.min() > 0.01


def test_every_place_of_the_stream_says_what_the_last_norm_and_the_output_layer_make_of_it(looked):
    model, look, by_hand = looked
    chances = scores_by_hand(model, by_hand.streams).softmax(-1)         # (L + 1, T, V)
    assert_allclose(look.lens_probabilities, chances.topk(10).values, **CLOSE)
    assert_allclose(chances.gather(2, torch.tensor(look.lens_tokens)), look.lens_probabilities,
                    **CLOSE)
    following = chances[:, range(23), TOKENS[1:]]
    assert_allclose(look.lens_next, following, **CLOSE)
    assert look.lens_next.shape == (3, 23)
    assert_allclose(look.logits, by_hand.logits[-1], **CLOSE)


@torch.no_grad()
def test_the_last_place_says_what_the_model_says(looked):
    model, look, _ = looked
    read = torch.tensor([TOKENS])
    prompts = torch.ones_like(read).bool() if np.triu(look.attention, 1).any() else None
    scores = model(read, prompts=prompts)[0]
    assert_allclose(look.lens_probabilities[-1], scores.softmax(-1).topk(10).values, atol=1e-6)
    assert_allclose(look.logits, scores[-1], atol=1e-5)


def strongest_by_hand(model, neurons):
    """{(layer, index): (activations, tokens)} of the 24 that add the longest vectors."""
    columns = torch.stack([block.feedforward.down_proj.weight.double() for block in model.blocks])
    lengths = neurons.abs().amax(1) * columns.norm(dim=1)                # (L, n_inner)
    found = {}
    for place in lengths.flatten().argsort(descending=True)[:24].tolist():
        layer, index = divmod(place, neurons.size(2))
        values = neurons[layer, :, index]
        sign = values[values.abs().argmax()].sign()
        scores = model.output_weight.double() @ columns[layer, :, index] * sign
        found[layer, index] = values, scores.topk(5).indices.tolist()
    return found


def assert_neurons_are(look, expected):
    assert [(each.layer, each.index) for each in look.neurons] == list(expected)
    for each, (values, tokens) in zip(look.neurons, expected.values(), strict=True):
        assert_allclose(each.activations, values, **CLOSE)
        assert each.tokens.tolist() == tokens


def test_neurons_are_those_that_add_the_longest_vectors_and_promote_what_their_columns_do(looked):
    model, look, by_hand = looked
    assert_neurons_are(look, strongest_by_hand(model, by_hand.neurons))
    strong = [values[values.abs().argmax()] < 0 for values, _ in
              strongest_by_hand(model, by_hand.neurons).values()]
    assert any(strong) or model.config.mlp != "swiglu"  # the sign makes a difference


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_attention_times_values_is_what_the_layer_has_read(name):
    model = tiny_gpt(**ARCHITECTURES[name])
    layers, _ = record(model, [TOKENS])
    for block, layer in zip(model.blocks, layers, strict=True):
        v = block.attention.qkv_proj(block.attention_norm(layer.x)).split(
            block.attention.qkv_widths, dim=-1)[2]
        v = v.unflatten(-1, (-1, model.config.head_dim)).transpose(1, 2)
        read = layer.weights() @ v.repeat_interleave(4 // v.size(1), dim=1)
        assert_allclose(read.transpose(1, 2).flatten(2), layer.read, **CLOSE)


def test_attention_is_that_which_transformers_shows(tmp_path):
    theirs, folder = saved("gpt2", tmp_path)
    lm = load(str(folder), "cpu", "float32")
    look = lm.look("def a(b):\n    return b")
    with torch.no_grad():
        told = theirs(torch.tensor([look.tokens.tolist()]), output_attentions=True,
                      output_hidden_states=True)
    assert_allclose(look.attention, torch.cat(told.attentions), **CLOSE)
    assert_allclose(look.residual_norms[:-1], torch.cat(told.hidden_states[:-1]).norm(dim=-1),
                    **CLOSE)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapted_model_is_seen_as_the_one_that_its_adapter_makes_of_it(method):
    model = tiny_gpt()
    lora.adapt(model, AdapterConfig(method=method, rank=2, targets=["all"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".B"):
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    adapted = look_at(model, BYTES, TOKENS)
    lora.merge(model)
    by_hand = read_by_hand(model, TOKENS)
    assert_allclose(adapted.attention, by_hand.attention, **CLOSE)
    assert_neurons_are(adapted, strongest_by_hand(model, by_hand.neurons))


def test_an_int8_model_is_seen_as_the_one_that_its_numbers_stand_for():
    model, plain = tiny_gpt(), tiny_gpt()
    quantize(model)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, Int8Linear):
                plain.get_submodule(name).weight.copy_(layer.weight * layer.scale.float()[:, None])
    by_hand = read_by_hand(plain, TOKENS)
    look = look_at(model, BYTES, TOKENS)
    assert_allclose(look.attention, by_hand.attention, **CLOSE)
    expected = strongest_by_hand(plain, by_hand.neurons)
    assert_allclose(_matrix(model.blocks[0].feedforward.down_proj),
                    plain.blocks[0].feedforward.down_proj.weight.detach(), rtol=1e-6)
    assert [(each.layer, each.index) for each in look.neurons] == list(expected)
    assert not np.allclose(look.attention, look_at(tiny_gpt(), BYTES, TOKENS).attention, atol=1e-4)


def test_looking_leaves_a_model_as_it_was_and_drops_nothing_out():
    model = tiny_gpt(dropout=0.5)
    resting = look_at(model, BYTES, TOKENS)
    model.train()
    model.blocks[1].eval()
    before = [(name, module.training, set(vars(module))) for name, module in model.named_modules()]
    again = look_at(model, BYTES, TOKENS)
    assert_allclose(again.attention, resting.attention, rtol=0, atol=0)
    assert [(name, module.training, set(vars(module)))
            for name, module in model.named_modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(torch.tensor([TOKENS])).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_pass_that_fails_leaves_no_trace():
    model = tiny_gpt().train()
    with pytest.raises(IndexError):
        look_at(model, BYTES, [61])
    assert not any(module._forward_hooks or module._forward_pre_hooks or "_attend" in vars(module)
                   for module in model.modules()) and model.blocks[0].attention.training


def lm_of(**changes):
    return LanguageModel(tiny_gpt(vocab_size=257, **changes), BYTES, CPU)


def test_a_text_is_read_as_generate_reads_it_and_parts_of_characters_can_be_seen():
    lm = lm_of()
    look = lm.look("a€", begin=True)
    assert look.tokens.tolist() == [256, 97, 0xe2, 0x82, 0xac]
    assert look.texts == ["<|endoftext|>", "a", "\\xe2", "\\x82", "\\xac"]
    assert lm.look("", begin=True).texts == look.texts[:1]
    assert lm.look("a").lens_next.shape == (3, 0)


def test_prompts_are_read_in_both_directions_where_the_model_does():
    lm = lm_of()
    assert not np.triu(lm.look("some text").attention, 1).any()
    lm.reads_both_ways = True
    assert np.triu(lm.look("some text").attention, 1).any()


@pytest.mark.parametrize(("text", "message"), [
    ("", "look: there is nothing to read; give a text, or ask for `begin`"),
    ("x" * 33, "the text has 33 tokens, the model reads 32 (model.block_size); shorten the text")])
def test_what_cannot_be_looked_at_is_one_line(text, message):
    with pytest.raises(UserError) as error:
        lm_of().look(text)
    assert str(error.value) == message


def test_one_process_looks():
    lm = lm_of()
    lm.machine = replace(CPU, ranks=copy.copy(CPU.ranks))
    lm.machine.ranks.size = 2
    with pytest.raises(UserError, match="look: one process looks into a model, not several"):
        lm.look("text")


@pytest.mark.auto
def test_it_looks_at_what_is_scored_whatever_auto_means_here(tmp_path, monkeypatch):
    from gpt.runs import checkpoint
    checkpoint.save_model(tmp_path / "model", tiny_gpt(vocab_size=257), BYTES, "a test")
    monkeypatch.setattr("gpt.machine.device.computes_in_bfloat16", lambda device: True)
    lm = load(str(tmp_path / "model"), "cpu")
    assert lm.machine.dtype == torch.bfloat16
    look = lm.look("some text")
    assert_allclose(np.log(look.lens_next[-1]), lm.score("some text", begin=False)[1:], atol=1e-5)
    rounded = load(str(tmp_path / "model"), "cpu", "bfloat16").look("some text")
    assert_allclose(rounded.attention, look.attention, atol=0.05)
    assert not np.allclose(rounded.attention, look.attention, atol=1e-4)
