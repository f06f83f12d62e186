"""Every way of training on the device against float32 on the processor.

Tolerances: the same float32 products are summed in another order, over at most a few hundred
terms. Each sum is then off by some roundings of 2^-24 of its largest terms, and what follows from
it likewise; 1e-4 of a tensor's largest value leaves room for a hundred of them.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpt.batches import DocumentRows, MicroBatch
from gpt.configuration import AdapterConfig, OptimConfig
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.model.lora import adapt
from gpt.optim import WeightAverage
from gpt.training import cross_entropy
from gpt.training.objective import Objective
from gpt.training.step import Step
from tests.cuda.conftest import DEVICE, ON_GPU
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt, tokenized
from tests.tiny_runs import accumulate_gradients, batch_of, optimizer_of, weights_of

END, T = 60, 32
SEGMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 16, [0] * T, [0, 1, 2, 3] + [4] * 28])
PROMPTS = torch.zeros(3, T, dtype=torch.bool)
PROMPTS[0, :4] = PROMPTS[1, :20] = PROMPTS[2, 4:12] = True
ROWS = {"one text": {}, "documents": {"segments": SEGMENTS}, "prompts": {"prompts": PROMPTS},
        "documents with prompts": {"segments": SEGMENTS, "prompts": PROMPTS}}
CLOSE = 1e-4


def rows_of(kind: str) -> MicroBatch:
    tokens = random_tokens(3, T + 1)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], 3 * T, **ROWS[kind])


def packed(isolate: bool = True) -> list[MicroBatch]:
    """Rows of whole documents, two at a time."""
    tokens: list[int] = []
    for i in range(12):
        tokens += [*random_tokens(1 + 17 * i % 40, vocab_size=END, seed=i).tolist(), END]
    rows = DocumentRows(tokenized(tokens, 61, END), T, isolate=isolate)
    numbers = torch.arange(len(rows)).numpy()
    return [rows.read(numbers[first:first + 2]) for first in range(0, len(numbers), 2)]


def gradients(model: GPT, batch: list[MicroBatch], machine: Machine = CPU, compiled: bool = False,
              objective: Objective | None = None) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients by name) of a copy of the model on a machine, both on the processor."""
    model = copy.deepcopy(model).train().to(machine.device)
    if compiled:
        model.compile(fullgraph=True, backend="inductor" if ON_GPU else "aot_eager")
    with machine.repeatable():
        loss = accumulate_gradients(model, batch, machine, objective=objective)
    return float(loss), {name: weight.grad.float().cpu() for name, weight
                         in model.named_parameters() if weight.grad is not None}


def assert_near(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]],
                close: float = CLOSE) -> None:
    """The loss, and each gradient against its largest value."""
    assert found[0] == pytest.approx(expected[0], rel=close)
    assert found[1].keys() == expected[1].keys() and expected[1]
    for name, gradient in expected[1].items():
        assert_close(found[1][name], gradient, rtol=0, atol=close * float(gradient.abs().max()),
                     msg=lambda text, name=name: f"{name}: {text}")


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Between gradients, as a share of their length."""
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (apart / sum(float(each.square().sum()) for each in expected.values())) ** 0.5


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_every_architecture_are_those_of_the_processor(name, kind, gpu):
    model, batch = tiny_gpt(**ARCHITECTURES[name]), [rows_of(kind)]
    assert_near(gradients(model, batch, gpu), gradients(model, batch))
    if kind != "one text":  # and the row's kind was seen
        assert distance(gradients(model, [rows_of("one text")])[1],
                        gradients(model, batch)[1]) > 0.01


def test_packed_documents_have_the_gradients_of_the_processor(gpu):
    model = tiny_gpt()
    assert_near(gradients(model, packed(), gpu), gradients(model, packed()))
    assert distance(gradients(model, packed(isolate=False))[1],
                    gradients(model, packed())[1]) > 0.01


def test_gradients_do_not_depend_on_how_the_batch_is_cut(gpu):
    model, batch = tiny_gpt(), batch_of(8)
    whole = gradients(model, [batch], gpu)
    for pieces in (2, 3, 8):
        assert_near(gradients(model, batch.cut(pieces), gpu), whole, close=1e-5)


def test_the_loss_does_not_depend_on_its_chunks(gpu, monkeypatch):
    model, batch = tiny_gpt(logit_softcap=8.0), [batch_of(8)]
    whole = gradients(model, batch)
    for size in (61, 61 * 16):  # a row, 16 rows
        monkeypatch.setattr(cross_entropy, "CUDA_CHUNK_FLOATS", size)
        monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", size)
        assert_near(gradients(model, batch, gpu), whole)


@pytest.mark.parametrize(("changes", "kind"), [
    ({}, "one text"), ({}, "documents"), ({"window": 5, "window_pattern": "SF"}, "one text"),
    ({"window": 5, "window_pattern": "SF"}, "documents with prompts"),
    (ARCHITECTURES["gpt2"], "one text"), ({"logit_softcap": 8.0}, "prompts")], ids=str)
def test_compiled_steps_have_the_gradients_of_eager_ones(changes, kind, gpu):
    """Heads are as wide as FlexAttention needs them, so that it is what reads the documents."""
    model, batch = tiny_gpt(**{**changes, "n_embd": 64, "n_head": 4}), [rows_of(kind)]
    assert_near(gradients(model, batch, gpu, compiled=True), gradients(model, batch))


def test_compiled_steps_that_recompute_have_them_too(gpu):
    model, batch = tiny_gpt(n_embd=64), [rows_of("documents")]
    expected = gradients(model, batch)
    model.recompute = True
    assert_near(gradients(model, batch, gpu, compiled=True), expected)


def test_compiled_steps_of_several_widths_do_not_differ(gpu):
    """As rows of fine-tuning have them: torch compiles for one width, then for any."""
    model = tiny_gpt(n_embd=64)
    parts = [MicroBatch(tokens, tokens, tokens.numel()) for tokens in
             (random_tokens(3, 20), random_tokens(2, 32, seed=1), random_tokens(4, 9, seed=2))]
    assert_near(gradients(model, parts, gpu, compiled=True), gradients(model, parts))


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_stays_within_its_rounding(compiled, bfloat16):
    """8 bits: each product is off by up to 2^-8, and layers and sums let that grow a few times."""
    model, batch = tiny_gpt(n_embd=64), [batch_of(8)]
    loss, found = gradients(model, batch, bfloat16, compiled)
    expected_loss, expected = gradients(model, batch)
    assert loss == pytest.approx(expected_loss, rel=2**-7)
    assert 1e-4 < distance(found, expected) < 8 * 2**-8


def test_float16_is_scaled_and_learns_as_float32_does(float16):
    losses = {}
    for machine in (CPU, float16):
        model = tiny_gpt().train().to(machine.device)
        step, losses[machine.dtype] = Step(model, optimizer_of(model), machine, 1.0), []
        for number in range(12):
            loss, _ = step.gradients([batch_of(8, seed=number % 2)], lambda: None)
            step.apply()
            losses[machine.dtype].append(float(loss))
    assert step.loss_scale is not None and step.loss_scale["scale"] >= 1
    # 11 bits; the first scales overflow and leave updates out, so a curve lags by some steps.
    assert losses[torch.float16][0] == pytest.approx(losses[torch.float32][0], rel=2**-9)
    assert losses[torch.float16][-1] < losses[torch.float32][0] - 0.5


def test_float8_stays_within_its_rounding(bfloat16):
    pytest.importorskip("torchao", reason="float8 needs torchao")
    model = tiny_gpt(n_embd=64, n_inner=128)
    plain = gradients(model, [batch_of(8)])[1]
    model.to(DEVICE)
    replace(bfloat16, float8=True).place(model)
    found = gradients(model, [batch_of(8)], bfloat16)[1]
    assert 1e-3 < distance(found, plain) < 1 / 4  # e5m2's gradients keep 2 bits


ADAPTERS = {"lora": {}, "dora": {"method": "dora"}, "lora on int8": {"base": "int8"},
            "dora on int8": {"method": "dora", "base": "int8"}}


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in ADAPTERS),
                                                ("lora on int8", True)])
def test_adapters_have_the_gradients_of_the_processor(name, compiled, gpu):
    model = tiny_gpt()
    adapt(model, AdapterConfig(**{"rank": 4, "alpha": 6.0, **ADAPTERS[name]}))
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith(".B"):
                weight.normal_(std=0.1)
    assert_near(gradients(model, [batch_of(8)], gpu, compiled), gradients(model, [batch_of(8)]))


def test_preferences_have_the_gradients_of_the_processor(gpu):
    from gpt.configuration import PreferenceConfig
    from gpt.finetuning.preferences import PairBatch, PreferenceObjective
    model = tiny_gpt()
    batch = batch_of(8)
    pairs = PairBatch(batch.inputs, batch.targets, batch.tokens,
                      reference=torch.linspace(-30, -20, 8))
    found, expected = ((gradients(model, pairs.cut(2), machine,
                                  objective=PreferenceObjective(PreferenceConfig())))
                       for machine in (gpu, CPU))
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_take_the_steps_of_the_processor(name, gpu):
    """Muon's iteration is in bfloat16 on CUDA: its polynomials raise the smallest singular values,
    and their roundings of 2^-9, by up to 4.1 · 4.0 · 3.7.
    """
    ends = []
    for machine in (gpu, CPU):
        model = tiny_gpt().train().to(machine.device)
        optimizer = optimizer_of(model, OptimConfig(name=name), name=name)
        average = WeightAverage.continued(model, optimizer.state, 0.9)
        step = Step(model, optimizer, machine, 1.0, average=average)
        for number in range(5):
            step.gradients([batch_of(8, seed=number)], lambda: None)
            step.apply()
        with average.in_model():
            ends.append((weights_of(tiny_gpt().to(machine.device)).cpu(), weights_of(model).cpu()))
    start, moved = ends[1][0], ends[1][1] - ends[1][0]
    share = float((ends[0][1] - start - moved).norm() / moved.norm())
    # Adam's first steps are the signs of gradients: those near 0 may fall either way.
    assert share < (0.02 if name == "adamw" else 4.1 * 4.0 * 3.7 * 2**-9) and moved.norm() > 0.1
