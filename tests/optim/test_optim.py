"""Learning rates over a run, groups of weights and their rates, and AdamW."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gpt.configuration import FinetuneConfig, OptimConfig
from gpt.finetuning.run import settled
from gpt.optim import Rates, WeightAverage, lr_factor, weights_by_kind
from gpt.optim.adamw import AdamW
from gpt.optim.group import State
from gpt.optim.muon import Muon
from tests.tiny import CPU, ROOT, script_environment, tiny_config, tiny_gpt
from tests.tiny_runs import accumulate_gradients, batch_of, optimizer_of, weights_of


def names_by_kind(**changes: object) -> dict[str, set[str]]:
    model = tiny_gpt(**changes)
    names = {id(p): name.split(".")[-2] for name, p in model.named_parameters()}
    kinds = weights_by_kind(model)
    assert sum(map(len, kinds.values())) == len(names)  # each once
    return {kind: {names[id(p)] for p in weights} for kind, weights in kinds.items()}


def test_weights_are_grouped_by_what_they_are():
    kinds = names_by_kind(bias=True, position="learned", norm="layernorm")
    assert kinds["matrices"] == {"qkv_proj", "out_proj", "up_proj", "down_proj"}
    assert kinds["output"] == {"lm_head"}
    assert kinds["embeddings"] == {"token_embedding", "position_embedding"}
    assert {"qkv_proj", "attention_norm", "q_norm", "final_norm"} & kinds["vectors"]  # biases too
    assert "output" not in names_by_kind(tie_embeddings=True)  # it is the embedding then


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_norms_biases_and_embeddings_never_decay(name):
    model = tiny_gpt(bias=True, position="learned", norm="layernorm")
    optimizer = optimizer_of(model, OptimConfig(weight_decay=0.3), name=name)
    assert {group.name: group.weight_decay for group in optimizer.groups} == {
        "matrices": 0.3, "output": 0.3, "embeddings": 0.0, "vectors": 0.0}
    assert all(p.dim() == 1 or group.name == "embeddings" for group in optimizer.groups
               if not group.weight_decay for p in group.weights)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_shrinks_matrices_alone_when_there_is_no_gradient(name):
    model = tiny_gpt(bias=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optimizer_of(model, OptimConfig(weight_decay=0.5), name=name, lr=0.1, muon_lr=0.2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for weight, p in model.named_parameters():
        is_muons = name == "muon" and p.dim() == 2 and "lm_head" not in weight
        shrunk = 1 - (0.2 if is_muons else 0.1) * 0.5
        factor = shrunk if p.dim() == 2 and "embedding" not in weight else 1.0
        assert_close(p.detach(), before[weight] * factor)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    rules = {name: {group.name: group.rule for group in optimizer_of(
        tiny_gpt(), OptimConfig(muon_momentum=0.8, beta1=0.7), name=name, beta2=0.9).groups}
        for name in ("adamw", "muon")}
    assert rules["adamw"] == dict.fromkeys(rules["muon"], AdamW(0.7, 0.9))
    assert rules["muon"] == rules["adamw"] | {"matrices": Muon(0.8)}


def test_each_group_learns_at_its_own_rate_and_all_follow_the_schedule():
    optimizer = optimizer_of(tiny_gpt(), name="muon", lr=0.01, muon_lr=0.03)
    peaks = {"matrices": 0.03, "output": 0.01, "embeddings": 0.01, "vectors": 0.01}
    assert {group.name: group.lr for group in optimizer.groups} == peaks
    assert optimizer.set_lr(0.5) == {name: peak / 2 for name, peak in peaks.items()}
    assert optimizer.set_lr(0.1) == pytest.approx({k: v / 10 for k, v in peaks.items()})
    assert {group.name: group.lr for group in optimizer.groups} == optimizer.set_lr(0.1)
    model = tiny_gpt()
    before, optimizer = weights_of(model), optimizer_of(model)
    optimizer.set_lr(0.0)
    learn(model, optimizer)
    assert torch.equal(weights_of(model), before)


def learn(model, optimizer, seed: int = 0) -> None:
    accumulate_gradients(model, [batch_of(seed=seed)], CPU)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_without_gradients_are_left_alone_and_remember_nothing(name):
    model = tiny_gpt()
    optimizer = optimizer_of(model, name=name)
    frozen = [model.blocks[0].attention.qkv_proj.weight, model.lm_head.weight,
              model.final_norm.weight]
    accumulate_gradients(model, [batch_of()], CPU)
    for weight in frozen:
        weight.grad = None
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer.step()
    for p, old in before.items():
        is_frozen = any(p is weight for weight in frozen)
        assert torch.equal(p, old) == is_frozen
        assert (p in optimizer.state) != is_frozen
    model.zero_grad()
    optimizer.step()  # and when there are no gradients at all


def test_what_a_rule_remembers_is_what_it_says_and_what_it_lacks_is_named():
    for name, other, lacking in (("adamw", "muon", {"momentum"}),
                                 ("muon", "adamw", {"exp_avg", "exp_avg_sq", "step"})):
        model = tiny_gpt()
        optimizer, changed = optimizer_of(model, name=name), optimizer_of(model, name=other)
        assert not optimizer.lacking_state()  # nothing was learned yet
        learn(model, optimizer)
        for group in optimizer.groups:
            assert all(optimizer.state[p].keys() == group.rule.remembers for p in group.weights)
        changed.state.update(optimizer.state)
        assert (optimizer.lacking_state(), changed.lacking_state()) == (set(), lacking)


def test_an_average_of_weights_that_were_never_updated_lacks_nothing():
    """As float16 leaves it when every update so far overflowed."""
    model = tiny_gpt()
    optimizer = optimizer_of(model, name="muon")
    average = WeightAverage(model, optimizer.state, 0.9)
    average.update()
    assert optimizer.state and not optimizer.lacking_state()
    next(iter(optimizer.state.values()))["exp_avg"] = torch.zeros(1)
    assert optimizer.lacking_state()


def test_gradients_are_dropped():
    model = tiny_gpt()
    optimizer = optimizer_of(model)
    accumulate_gradients(model, [batch_of()], CPU)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("shapes", [[(5, 7), (3,), (4, 2, 2)], [(1,)]], ids=str)
def test_adamw_takes_torchs_steps_to_the_bit(shapes):
    ours, theirs = ([nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)))
                     for i, shape in enumerate(shapes)] for _ in range(2))
    rule, state = AdamW(0.8, 0.9), State()
    torchs = torch.optim.AdamW(theirs, betas=(0.8, 0.9), eps=1e-10, fused=True)
    for step in range(5):
        lr, weight_decay = 0.1 / (step + 1), 0.1 * step
        torchs.param_groups[0].update(lr=lr, weight_decay=weight_decay)
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            # Down to where epsilon decides how far a weight moves.
            draw = torch.Generator().manual_seed(10 * step + i)
            one.grad = other.grad = torch.randn(one.shape, generator=draw) * 10.0 ** (-4 * i)
        with torch.no_grad():
            rule.update(list(ours), state, lr, weight_decay)
        torchs.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
            for key in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(state[one][key], torchs.state[other][key])


def test_adamw_equals_its_formula():
    """Written out in float64; gradients are large enough for epsilon not to matter."""
    weight = nn.Parameter(torch.linspace(-1, 1, 9))
    rule, state, expected = AdamW(0.8, 0.9), State(), weight.detach().double()
    mean = square = torch.zeros(9, dtype=torch.float64)
    for step in range(1, 6):
        weight.grad = torch.sin(torch.arange(9.0) * step)
        gradient = weight.grad.double()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        move = (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-10)
        expected = expected * (1 - 0.05 * 0.3) - 0.05 * move
        with torch.no_grad():
            rule.update([weight], state, 0.05, 0.3)
    # Five steps of at most about 0.1 on weights of at most 1: each rounds a handful of times.
    assert_close(weight.double(), expected, rtol=0, atol=5 * 8 * 2**-24)


def test_epsilon_does_not_slow_rare_tokens_down():
    """A gradient of 1e-6 on a token in a hundred is a root of squares of 1e-7, far above 1e-10."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for weight, size in zip(weights, (1.0, 1e-7), strict=True):
        weight.grad = torch.full((1,), size)
    with torch.no_grad():
        AdamW(0.9, 0.95).update(list(weights), State(), 0.01, 0.0)
    assert_close(weights[0], weights[1], rtol=2e-3, atol=0)  # epsilon's share: 1e-10 / 1e-7


WITHOUT_COMPILER = """
import sys, torch
from tests.tiny import CPU, tiny_gpt
from tests.tiny_runs import batch_of, optimizer_of
from gpt.training.step import Step
for name in ("adamw", "muon"):
    model = tiny_gpt()
    step = Step(model, optimizer_of(model, name=name), CPU, 1.0)
    step.gradients([batch_of()], lambda: None)
    step.apply()
print("torch._dynamo" in sys.modules)
torch.optim.AdamW(tiny_gpt().parameters())
print("torch._dynamo" in sys.modules)
"""


def test_learning_does_not_import_torchs_compiler_as_torchs_optimizers_do():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], cwd=ROOT, text=True,
                          capture_output=True, env=script_environment(), timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_warmup_constant_cooldown():
    optim = OptimConfig(schedule="wsd", warmup_steps=9, cooldown_fraction=0.4, min_lr_fraction=0.1)
    assert lr_factor(optim, 0, 0.0) == pytest.approx(0.1)
    assert lr_factor(optim, 4, 0.04) == pytest.approx(0.5)
    assert lr_factor(optim, 9, 0.09) == 1.0
    assert lr_factor(optim, 60, 0.6) == pytest.approx(1.0)
    assert lr_factor(optim, 80, 0.8) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(optim, 100, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("schedule", "half", "end"), [
    ("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_other_schedules_start_at_the_peak_and_end_where_they_should(schedule, half, end):
    optim = OptimConfig(schedule=schedule, warmup_steps=0)
    assert lr_factor(optim, 0, 0.0) == 1.0
    assert lr_factor(optim, 50, 0.5) == pytest.approx(half)
    assert lr_factor(optim, 100, 1.0) == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_every_schedule_ends_at_its_floor_and_stays_there(schedule):
    optim = OptimConfig(schedule=schedule, warmup_steps=0, min_lr_fraction=0.2)
    assert lr_factor(optim, 10, 0.0) == pytest.approx(1.0)
    assert lr_factor(optim, 10, 0.75) < 1.0
    assert lr_factor(optim, 10, 1.0) == lr_factor(optim, 10, 1.5) == pytest.approx(0.2)


def test_a_cooldown_of_zero_keeps_the_peak_to_the_end():
    assert lr_factor(OptimConfig(cooldown_fraction=0.0, warmup_steps=0), 99, 0.999) == 1.0


def rates_of(tokens_per_step: float = 1000, n_embd: int = 512, **optim: object) -> Rates:
    settings = {"beta2_half_life": 20_000, **optim}
    return Rates.of(OptimConfig(**settings), tiny_config(n_embd=n_embd), tokens_per_step)


def test_automatic_learning_rate_falls_with_width_and_a_given_one_is_used():
    narrow, wide = (rates_of(name="adamw", n_embd=n).lr for n in (512, 2048))
    assert narrow == pytest.approx(4 * wide) == pytest.approx(1 / 512)
    assert rates_of(name="adamw", n_embd=64).lr == 0.004
    for name in ("adamw", "muon"):
        assert rates_of(name=name, n_embd=32, lr=0.007).lr == 0.007


def test_beside_muon_adamws_learning_rate_falls_with_the_root_of_the_width():
    assert rates_of(name="muon", n_embd=128).lr == pytest.approx(0.02)
    assert rates_of(name="muon", n_embd=2048).lr == pytest.approx(0.02 / 4)
    assert rates_of(6 * 128, n_embd=128).lr == rates_of(name="muon", n_embd=128).lr  # by auto
    assert rates_of(6 * 128 - 1, n_embd=128).lr == rates_of(name="adamw", n_embd=128).lr


def test_muons_learning_rate_is_the_same_for_all_widths():
    assert rates_of(n_embd=64).muon_lr == rates_of(n_embd=2048).muon_lr == 0.02
    assert rates_of(muon_lr=0.05).muon_lr == 0.05


@pytest.mark.parametrize("n_embd", [64, 512])
def test_auto_is_muon_from_six_tokens_per_width_on(n_embd):
    assert rates_of(6 * n_embd, n_embd).name == "muon"
    assert rates_of(6 * n_embd - 1, n_embd).name == "adamw"
    for name in ("adamw", "muon"):
        assert rates_of(1, n_embd, name=name).name == name
        assert rates_of(10**6, n_embd, name=name).name == name


def test_beta2_halves_a_squared_gradient_in_the_same_number_of_tokens_whatever_the_batch():
    for tokens in (64, 500, 2000):
        beta2 = rates_of(tokens, beta2_half_life=20_000).beta2
        assert beta2 ** (20_000 / tokens) == pytest.approx(0.5)
    assert rates_of(1000, beta2_half_life=10_000).beta2 == pytest.approx(0.5 ** 0.1)


def test_beta2_stays_within_its_limits_unless_it_is_given():
    assert rates_of(1).beta2 == 0.999
    assert rates_of(10**6).beta2 == 0.9
    assert 0.9 < rates_of(2000).beta2 < 0.999
    assert rates_of(10**6, beta2=0.5).beta2 == 0.5
    assert rates_of(1, beta2=0.9999).beta2 == 0.9999


def test_the_average_of_weights_forgets_by_tokens_and_is_off_by_default():
    assert rates_of(1000).ema_decay is None
    assert rates_of(1000, ema_half_life=10_000).ema_decay == pytest.approx(0.5 ** 0.1)
    assert rates_of(20_000, ema_half_life=10_000).ema_decay == pytest.approx(0.25)


def test_rates_are_told_as_they_are_used():
    said = str(rates_of(10_000, muon_lr=0.03, lr=0.001))
    assert said == "muon at 0.03 for matrices, adamw at 0.001, beta2 0.9"
    assert str(rates_of(200, lr=0.001)) == "adamw at 0.001, beta2 0.9931"


@pytest.mark.parametrize(("asked", "used"), [("auto", "adamw"), ("adamw", "adamw"),
                                             ("muon", "muon")])
def test_fine_tuning_uses_adamw_unless_muon_is_asked_for(asked, used):
    config = FinetuneConfig(finetune={"from": "runs/a", "data": "b"},
                            optim={"name": asked, "lr": 0.003}, train={"batch_size": 5})
    assert settled(config) == config.model_copy(
        update={"optim": OptimConfig(name=used, lr=0.003)})
    assert config.optim.name == asked  # the configuration as typed stays


def test_an_optimizer_that_nobody_builds_does_not_become_another_one():
    with pytest.raises(AssertionError, match="nobody builds lion"):
        optimizer_of(tiny_gpt(), name="lion")
