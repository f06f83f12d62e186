"""Matrices lie in memory differently, and are the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import gpt
from gpt import checkpoint, packed
from gpt.generation import Engine, Request, SamplingConfig
from gpt.language_model import LanguageModel
from gpt.packed import PackedLinear, pack, packs, unpack
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, random_tokens, tiny_gpt

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(),
                                reason="this build of torch has no oneDNN")
KINDS = [{}, {"tie_embeddings": True}, {"bias": True, "norm": "layernorm"},
         {"mlp": "swiglu", "n_kv_head": 1}]


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, PackedLinear)]


def test_float32_can_be_packed():
    assert packs(torch.float32)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_matrix(rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 72, bias=bias), torch.randn(rows, 1, 40)
    with torch.no_grad():
        assert_close(PackedLinear(linear.weight, linear.bias)(x), linear(x))


@pytest.mark.parametrize("changes", KINDS, ids=str)
@torch.no_grad()
def test_a_packed_model_says_the_same_and_is_itself_again_when_unpacked(changes):
    model, tokens = tiny_gpt(**changes), random_tokens(3, 20)
    before, said = {name: w.clone() for name, w in model.state_dict().items()}, model(tokens)
    pack(model)
    pack(model)  # once more changes nothing
    assert len(packed_layers(model)) == 4 * model.config.n_layer + 1
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert_close(model(tokens), said)
    unpack(model)
    assert [*model.state_dict()] == [*before] and not packed_layers(model)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert torch.equal(model(tokens), said)


def test_an_unpacked_model_learns():
    model = tiny_gpt(bias=True)
    names = {name for name, _ in model.named_parameters()}
    pack(model)
    unpack(model)
    model(random_tokens(2, 8)).square().sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == names


def test_numbers_that_the_processor_cannot_pack_stay_as_they_are():
    assert not packs(torch.float64)
    model = tiny_gpt().double()
    pack(model)
    assert not packed_layers(model)


def test_texts_are_those_of_plain_matrices():
    requests = [Request(random_tokens(1 + n, seed=n).tolist(),
                        SamplingConfig(max_new_tokens=10, seed=n)) for n in range(20)]
    model, made = tiny_gpt(), []
    for prepare in (lambda model: None, pack):
        prepare(model)
        made.append([(i, new.token) for i, new in Engine(model, CPU, rows=7).run(requests)])
    assert made[0] == made[1]


@pytest.fixture
def saved(tmp_path):
    checkpoint.save_model(tmp_path / "m", tiny_gpt(vocab_size=257), build_tokenizer("byte"), "test")
    return str(tmp_path / "m")


def test_a_loaded_model_is_packed_by_what_it_generates_and_plain_once_it_is_asked_for(saved):
    lm = gpt.load(saved, device="cpu", dtype="float32")
    settings = {"max_new_tokens": 12, "seed": 3}
    first = lm.generate("ab", **settings)
    assert packed_layers(lm.inference_model) and lm.score("abc") == pytest.approx(
        gpt.load(saved, device="cpu", dtype="float32").score("abc"), abs=1e-5)
    model = lm.model
    assert not packed_layers(model)
    assert lm.generate("ab", **settings) == first and not packed_layers(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    assert lm.generate("ab", **settings) != first  # what was changed counts


def test_a_model_that_is_handed_over_is_left_as_it_is():
    lm = LanguageModel(tiny_gpt(vocab_size=257), build_tokenizer("byte"), CPU)
    lm.generate("a", max_new_tokens=2)
    assert not packed_layers(lm.model)


def test_beams_and_drafts_read_packed_matrices(saved):
    lm = gpt.load(saved, device="cpu", dtype="float32", draft=saved)
    assert packed_layers(lm.draft._model)
    lm.generate("ab", beams=2, max_new_tokens=3)
    assert packed_layers(lm.inference_model)


def test_int8_is_not_packed(saved):
    lm = gpt.load(saved, device="cpu", dtype="int8")
    lm.generate("ab", max_new_tokens=2)
    assert not packed_layers(lm.model)


def test_without_the_operator_all_stays_plain(saved, monkeypatch):
    def missing(*args):
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed.PackedLinear, "__init__", missing)
    monkeypatch.setattr(packed, "packs", packs.__wrapped__)
    lm = gpt.load(saved, device="cpu", dtype="float32")
    lm.generate("ab", max_new_tokens=5)
    assert not packed_layers(lm.inference_model)
