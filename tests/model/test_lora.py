"""Frozen models that learn through low-rank updates: PEFT's numbers, and nobody else's changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.configuration import AdapterConfig
from gpt.errors import UserError
from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear
from gpt.model.lora import (
    adapt,
    adapted_layers,
    adapter_state,
    base_state,
    chosen_parts,
    is_adapter_weight,
    load_adapter_state,
    merge,
    quantize_base,
)
from tests.model.published import assert_nearly_equal
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt

METHODS: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"method": "dora"}, "rslora": {"rslora": True},
    "dora, rslora": {"method": "dora", "rslora": True}}
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
FEEDFORWARD = ["gate_proj", "up_proj", "down_proj"]
TOKENS = random_tokens(2, 24)
EPS = 2**-24  # half a unit in float32's last place


def adapter(**changes: Any) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "alpha": 6.0, **changes})


def adapted(config: AdapterConfig, learned: bool = True, seed: int = 0, **changes: Any) -> GPT:
    """A tiny model with an adapter; learned: its weights are what training might make of them."""
    model = tiny_gpt(seed, **changes)
    adapt(model, config)
    if learned:
        learn(model)
    return model


@torch.no_grad()
def learn(module: nn.Module) -> None:
    """Change all that an adapter trains."""
    for name, parameter in module.named_parameters():
        if name.endswith(".B"):
            parameter.normal_(std=0.1)
        elif name.endswith(".magnitude"):
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))


def loss_of(model: GPT, tokens: Tensor = TOKENS) -> Tensor:
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def layer_with(config: AdapterConfig, parts: dict[str, int], bias: bool = True,
               inputs: int = 48) -> tuple[nn.Linear, AdaptedLinear]:
    """A layer of these parts, and the same one with an adapter that has learned."""
    torch.manual_seed(1)
    plain = nn.Linear(inputs, sum(parts.values()), bias=bias)
    layer = AdaptedLinear(copy.deepcopy(plain).requires_grad_(False), parts, config)
    layer.add_updates(set(config.targets))
    learn(layer)
    return plain, layer


def peft_layer(plain: nn.Linear, layer: AdaptedLinear, part: str) -> nn.Module:
    """PEFT's layer with one part of ours in it."""
    peft = pytest.importorskip("peft")
    weight, bias = (None if whole is None else layer.by_part(whole.detach(), dim=0)[part]
                    for whole in (plain.weight, plain.bias))
    assert weight is not None
    holder = nn.ModuleDict({part: nn.Linear(len(weight[0]), len(weight), bias is not None)})
    holder[part].weight = nn.Parameter(weight)
    holder[part].bias = None if bias is None else nn.Parameter(bias)
    config, update = layer.config, layer.updates[part]
    peft.inject_adapter_in_model(peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=[part],
        use_rslora=config.rslora, use_dora=config.method == "dora"), holder)
    theirs = holder[part]
    theirs.lora_A["default"].weight.data = update.A.detach().clone()
    theirs.lora_B["default"].weight.data = update.B.detach().clone()
    if update.magnitude is not None:
        found = theirs.lora_magnitude_vector["default"].weight
        assert_nearly_equal(weight.norm(dim=1), found)  # of the frozen weight, when it is made
        found.data = update.magnitude.detach().clone()
    return theirs


def their_gradients(theirs: Any) -> dict[str, Tensor]:
    found = {"A": theirs.lora_A["default"].weight.grad, "B": theirs.lora_B["default"].weight.grad}
    if len(theirs.lora_magnitude_vector):
        found["magnitude"] = theirs.lora_magnitude_vector["default"].weight.grad
    return found


# ----- The same numbers as PEFT's

@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_those_of_peft(method, bias, dropout, training):
    config = adapter(targets=["down_proj"], dropout=dropout, **METHODS[method])
    plain, ours = layer_with(config, {"down_proj": 40}, bias)
    theirs = peft_layer(plain, ours, "down_proj")
    outputs, inputs = [], []
    for layer in (ours.train(training), theirs.train(training)):
        x = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(2)).requires_grad_()
        torch.manual_seed(3)  # what is dropped
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
        inputs.append(x.grad)
    assert_nearly_equal(*outputs)
    assert_nearly_equal(*inputs)
    gradients = their_gradients(theirs)
    for name, parameter in ours.updates["down_proj"].named_parameters():
        assert_nearly_equal(parameter.grad, gradients.pop(name))
    assert not gradients
    assert (outputs[0] - plain(x)).abs().max() > 0.1  # not a comparison of nothing


@pytest.mark.parametrize("method", METHODS)
def test_each_part_of_a_fused_matrix_is_an_adapter_of_its_own(method):
    parts = {"q_proj": 40, "k_proj": 16, "v_proj": 16}
    config = adapter(targets=list(parts), **METHODS[method])
    plain, ours = layer_with(config, parts)
    theirs = [peft_layer(plain, ours, part) for part in parts]
    x = torch.randn(5, 48)
    expected = torch.cat([layer(x) for layer in theirs], dim=-1)
    assert_nearly_equal(ours(x), expected)
    expected.square().sum().backward()
    ours(x).square().sum().backward()
    for layer, update in zip(theirs, ours.updates.values(), strict=True):
        for name, gradient in their_gradients(layer).items():
            assert_nearly_equal(update.get_parameter(name).grad, gradient)


# ----- What changes, and what does not

@pytest.mark.parametrize("base", ["full", "int8"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_fresh_adapter_changes_no_bit(name, method, base):
    config = adapter(base=base, dropout=0.3, **METHODS[method])
    model = adapted(config, learned=False, **ARCHITECTURES[name])
    plain = tiny_gpt(**ARCHITECTURES[name])
    plain.load_state_dict(base_state(model))
    for training in (False, True):
        assert torch.equal(model.train(training)(TOKENS), plain(TOKENS))
    learn(model)
    assert not torch.equal(model(TOKENS), plain(TOKENS))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj"])
def test_only_the_rows_of_targets_change(target, method):
    parts = {"q_proj": 40, "k_proj": 16, "v_proj": 16}
    config = adapter(targets=[target], dropout=0.3, **METHODS[method])
    plain, layer = layer_with(config, parts)
    x = torch.randn(5, 48)
    before, after = (layer.by_part(each(x), dim=-1) for each in (plain, layer.train()))
    for part in parts:
        assert torch.equal(before[part], after[part]) == (part != target)


def test_what_is_dropped_differs_by_step_and_only_in_training():
    model = adapted(adapter(dropout=0.5))
    assert not any(module.training for module in model.modules())  # as the model was before
    whole = model(TOKENS)
    assert torch.equal(model(TOKENS), whole)
    model.train()
    assert len({model(TOKENS).sum().item() for _ in range(4)}) == 4
    without = adapted(adapter(dropout=0.0))
    assert torch.equal(without.train()(TOKENS), whole)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_steps_reach_the_adapter_alone(method):
    model = adapted(adapter(**METHODS[method])).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        losses.append(loss_of(model))
        losses[-1].backward()
        assert all((p.grad is not None and p.grad.any()) == is_adapter_weight(name)
                   for name, p in model.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != is_adapter_weight(name), name


@pytest.mark.parametrize("base", ["full", "int8"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_merged_model_computes_the_same_and_is_plain_again(name, method, base):
    model = adapted(adapter(base=base, **METHODS[method]), **ARCHITECTURES[name])
    plain = tiny_gpt(**ARCHITECTURES[name])
    expected = model(TOKENS)
    merge(model)
    # sums of some hundred products, with the update added before or after them
    assert_close(model(TOKENS), expected, rtol=0, atol=400 * EPS * expected.abs().max().item())
    assert (model(TOKENS) - plain(TOKENS)).abs().max() > 0.1
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.adapter is None and not adapted_layers(model)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_merged_model_of_half_precision_stays_in_it():
    model = adapted(adapter()).to(torch.bfloat16)
    merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(TOKENS).dtype == torch.bfloat16


def test_a_row_of_zeros_has_no_direction_and_becomes_no_nan():
    model = tiny_gpt(zero_outputs=True)  # out_proj and down_proj are zero
    adapt(model, adapter(method="dora"))
    for _ in range(2):
        loss = loss_of(model)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters()
                                       if p.requires_grad)
        learn(model)


# ----- Where updates are, and how they begin

def test_targets_are_parts_or_groups_of_them():
    swiglu, gelu = tiny_config(), tiny_config(mlp="gelu")
    for targets, expected in ((["attention"], ATTENTION), (["feedforward"], FEEDFORWARD),
                              (["all"], ATTENTION + FEEDFORWARD), (["k_proj"], ["k_proj"]),
                              (["up_proj", "attention"], [*ATTENTION, "up_proj"])):
        assert chosen_parts(targets, swiglu) == set(expected)
    assert chosen_parts(["all"], gelu) == {*ATTENTION, "up_proj", "down_proj"}


@pytest.mark.parametrize(("target", "changes"), [
    ("c_attn", {}), ("lm_head", {}), ("gate_proj", {"mlp": "gelu"})])
def test_a_target_that_the_model_has_not_is_named_with_those_it_has(target, changes):
    model = tiny_gpt(**changes)
    with pytest.raises(UserError, match=f"lora.targets: this model has no '{target}'; choose from "
                                        "q_proj, k_proj, v_proj, out_proj, .*down_proj, attention, "
                                        "feedforward, all$"):
        adapt(model, adapter(targets=["q_proj", target]))
    assert all(p.requires_grad for p in model.parameters())  # nothing was begun


def test_weights_keep_their_names_and_those_of_the_adapter_say_where_they_belong():
    model = tiny_gpt(n_layer=1)
    plain = list(model.state_dict())
    config = adapter(method="dora", targets=["k_proj", "gate_proj", "out_proj"])
    adapt(model, config)
    assert model.adapter == config
    assert [name for name in model.state_dict() if not is_adapter_weight(name)] == plain
    assert {name: list(tensor.shape) for name, tensor in adapter_state(model).items()} == {
        f"blocks.0.{place}.{one}": shape for place, I, O in (  # noqa: E741
            ("attention.qkv_proj.lora.k_proj", 32, 16),
            ("attention.out_proj.lora.out_proj", 32, 32),
            ("feedforward.up_proj.lora.gate_proj", 32, 96))
        for one, shape in (("A", [4, I]), ("B", [O, 4]), ("magnitude", [O]))}


def test_an_adapter_begins_as_that_of_peft():
    """A: uniform up to 1/√inputs; B: zero; magnitude: the lengths of the frozen rows."""
    torch.manual_seed(0)
    model = tiny_gpt()
    adapt(model, adapter(method="dora", rank=16))
    for layer in adapted_layers(model).values():
        bound, weights = layer.in_features**-0.5, layer.by_part(layer.weight, dim=0)
        for part, update in layer.updates.items():
            assert 0.98 * bound < update.A.abs().max() <= bound
            assert abs(update.A.mean().item()) < 4 * bound / math.sqrt(3 * update.A.numel())
            assert not update.B.any()
            assert_nearly_equal(update.magnitude, weights[part].norm(dim=1))


def test_what_is_drawn_depends_on_the_seed_alone():
    drawn = []
    for seed in (0, 0, 1):
        model = tiny_gpt()
        torch.manual_seed(seed)
        adapt(model, adapter())
        drawn.append(adapter_state(model)["blocks.1.attention.qkv_proj.lora.v_proj.A"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


# ----- Saved and loaded

def test_a_saved_adapter_on_the_same_base_is_the_same_model():
    config = adapter(method="dora")
    model, other = adapted(config), adapted(config, learned=False)
    assert not torch.equal(model(TOKENS), other(TOKENS))
    load_adapter_state(other, {name: tensor.clone()
                               for name, tensor in adapter_state(model).items()})
    assert torch.equal(model(TOKENS), other(TOKENS))


@pytest.mark.parametrize("base", ["full", "int8"])
def test_a_model_without_memory_takes_base_and_adapter_from_files(base):
    model = adapted(adapter(method="dora", base=base))
    with torch.device("meta"):
        empty = GPT(model.config)
    adapt(empty, adapter(method="dora", base=base))
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(TOKENS), model(TOKENS))


def test_an_adapter_that_does_not_fit_is_refused_by_the_names_that_do_not():
    state = adapter_state(adapted(adapter(targets=["attention"])))
    name, place = "blocks.0.attention.out_proj.lora.out_proj.B", r"blocks\.0\.attention\."
    for config, found in (
            (adapter(targets=["q_proj"]), rf"12 unexpected \({place}out_proj.lora.out_proj.A, "),
            (adapter(targets=["attention"], method="dora"), rf"8 missing \({place}out_proj.lora."
                                                            "out_proj.magnitude, "),
            (adapter(targets=["attention"], rank=2), rf"16 of another shape \({place}out_proj"),
            (adapter(targets=["q_proj"], rank=2), "12 unexpected .*, 4 of another shape ")):
        with pytest.raises(UserError, match=f"adapter's weights do not fit: {found}.*; it was made "
                                            "for another model"):
            load_adapter_state(adapted(config), state)
    model = adapted(adapter(targets=["attention"]))
    before = model(TOKENS)
    with pytest.raises(UserError, match=rf"do not fit: 1 missing \({name}\); ") as error:
        load_adapter_state(model, {key: -t for key, t in state.items() if key != name})
    assert "\n" not in str(error.value)
    assert torch.equal(model(TOKENS), before)


# ----- Other number formats, compiled

@pytest.mark.parametrize("base", ["full", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_products_are_bfloat16_and_the_adapter_stays_float32(method, base):
    model = adapted(adapter(base=base, **METHODS[method])).train()
    expected = loss_of(model)
    expected.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
        assert model(TOKENS).dtype == torch.bfloat16
    loss.backward()
    # bfloat16 rounds to 8 bits; through two layers that adds up to a few of these steps
    assert abs(loss - expected) < 8 * 2**-8 * expected and loss != expected
    for name, gradient in wanted.items():
        found = model.get_parameter(name).grad
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.98, name


def test_lengths_are_not_rounded_by_autocast():
    """Of 8 bits a magnitude's small changes would be lost in them."""
    plain, layer = layer_with(adapter(method="dora"), {"down_proj": 40})
    layer.add_updates({"down_proj"})
    learn(layer)
    update = layer.updates["down_proj"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = (plain.weight @ update.A.T).dtype
        found = update.stretch(plain.weight)
    assert rounded == torch.bfloat16  # what products are there otherwise
    assert torch.equal(found, update.stretch(plain.weight))


@pytest.mark.parametrize("base", ["full", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_a_base_in_bfloat16_has_an_adapter_in_float32(method, base):
    model = tiny_gpt().to(torch.bfloat16)
    adapt(model, adapter(base=base, **METHODS[method]))
    learn(model)
    assert {t.dtype for t in adapter_state(model).values()} == {torch.float32}
    exact = copy.deepcopy(model).float()
    with torch.no_grad():
        found, expected = model(TOKENS), exact(TOKENS)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 8 * 2**-8 * expected.norm()
    loss_of(model.train()).backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("method", "base"), [("lora", "full"), ("dora", "int8")])
def test_a_compiled_step_has_the_same_gradients(method, base):
    gradients = []
    for compiled in (False, True):
        config = adapter(base=base, dropout=0.2, **METHODS[method])
        model = adapted(config, n_layer=1, bias=True).train()
        if compiled:
            torch._dynamo.reset()
            model.compile(backend="aot_eager", fullgraph=True)
        torch.manual_seed(0)
        loss_of(model).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert_nearly_equal(gradients[1][name], gradient)


# ----- A base of int8

@pytest.mark.parametrize("method", METHODS)
def test_an_int8_base_computes_with_the_numbers_that_it_stands_for(method):
    """Bit for bit, backwards too: dequantizing is all that it does."""
    config = adapter(base="int8", **METHODS[method])
    small = adapted(config).train()
    large = tiny_gpt()
    large.load_state_dict(base_state(small))
    adapt(large.train(), adapter(**METHODS[method]))
    load_adapter_state(large, adapter_state(small))
    outputs = [model(TOKENS) for model in (small, large)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().mean().backward()
    for name, parameter in large.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(small.get_parameter(name).grad, parameter.grad), name


def test_an_int8_weight_is_off_by_at_most_half_a_step():
    plain = nn.Linear(300, 50)
    layer = AdaptedLinear(copy.deepcopy(plain), {"down_proj": 50}, adapter())
    layer.add_updates({"down_proj"})
    layer.quantize()
    step = plain.weight.abs().amax(dim=1, keepdim=True) / 127
    error = (layer.float_weight() - plain.weight).abs()
    assert (error <= step * (0.5 + 128 * EPS)).all()  # and the roundings of 127 steps
    assert error.max() > 0.49 * step.min()
    assert set(layer.weight.abs().amax(dim=1).tolist()) == {127}
    x = torch.randn(20, 300)
    bound = x.abs().sum(-1, keepdim=True) * step.T / 2  # every weight wrong in the worst way
    found = (layer(x) - plain(x)).abs()
    assert (found <= bound + 400 * EPS * plain(x).abs().max()).all() and found.any()


def test_the_same_base_always_becomes_the_same_int8():
    models = [adapted(adapter(base="int8"), learned=False, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (
        {n: t for n, t in model.state_dict().items() if not is_adapter_weight(n)}
        for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "blocks.0.attention.qkv_proj.weight"
    assert first[name].dtype == torch.int8 and not torch.equal(first[name], other[name])
    quantize_base(models[0])  # twice is once
    assert all(torch.equal(models[0].state_dict()[name], again[name]) for name in again)


def test_an_int8_base_takes_a_quarter_and_keeps_no_floats_for_the_backward_pass():
    """What autograd saves of the weights is their int8."""
    config = adapter(base="int8")
    sizes = {base: sum(layer.weight.nbytes for layer in adapted_layers(adapted(
        adapter(base=base))).values()) for base in ("full", "int8")}
    assert sizes["int8"] * 4 == sizes["full"]

    layer = layer_with(config.model_copy(update={"targets": ["down_proj"]}),
                       {"down_proj": 56})[1]
    layer.quantize()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 48, requires_grad=True))
    assert [t.dtype for t in kept if t.numel() == 56 * 48] == [torch.int8]


def test_rows_of_zeros_are_zeros_in_int8():
    layer = AdaptedLinear(nn.Linear(8, 4, bias=False), {"down_proj": 4}, adapter())
    nn.init.zeros_(layer.weight)
    layer.quantize()
    assert not layer.float_weight().any() and layer.weight_scale.all()  # and were not divided by 0
