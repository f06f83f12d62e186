"""What training computes in: float32's committed curve, float16's scaled losses, compiled steps."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from gpt.configuration import OptimConfig
from gpt.errors import TrainingFailed
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.training.step import SMALLEST_SCALE, Step
from tests.tiny import CPU, tiny_gpt
from tests.tiny_runs import batch_of, finish, optimizer_of, trainer_of, weights_of

CURVES = {
    "adamw": [4.48731661, 4.71239901, 3.19180250, 3.51935816, 2.69662976, 3.01954246, 2.34129190,
              2.62629080, 1.99681234, 2.29125452],
    "muon": [4.48731661, 4.55879974, 3.19432139, 3.51083064, 2.65179896, 2.86495399, 2.24475145,
             2.42625451, 1.86859047, 2.04926276]}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses_of(model: GPT, machine: Machine = CPU, name: str = "adamw", steps: int = 10,
              lr: float = 2e-3) -> list[float]:
    """Training losses over two batches that take turns."""
    machine.place(model.train())
    optimizer = optimizer_of(model, OptimConfig(muon_momentum=0.95), name=name, lr=lr,
                             muon_lr=5 * lr)
    step = Step(model, optimizer, machine, 1.0)
    losses = []
    for i in range(steps):
        losses.append(float(step.gradients([batch_of(8, 32, seed=i % 2)], lambda: None)[0]))
        step.apply()
    return losses


@pytest.mark.parametrize("name", CURVES)
def test_a_tiny_run_in_float32_follows_its_committed_curve(name, one_thread):
    """A change of initialisation, model, loss, clipping or optimizer shows here.

    One and two threads give the same bits, since tensors this small are not split. The kernels of
    other processors round otherwise: torch's for AVX2 and for none, and MKL's for AVX2 and SSE,
    end up to 2.4e-7 apart.
    """
    found = losses_of(tiny_gpt(zero_outputs=True), name=name)
    assert found == pytest.approx(CURVES[name], rel=1e-6)


@pytest.mark.parametrize("change", [{"lr": 2.001e-3}, {"name": "muon"}], ids=str)
def test_a_small_change_leaves_the_committed_curve(change, one_thread):
    found = losses_of(tiny_gpt(zero_outputs=True), **change)
    assert found != pytest.approx(CURVES["adamw"], rel=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor",
                                                               marks=pytest.mark.slow)])
def test_compiled_and_eager_training_agree(backend, monkeypatch):
    """aot_eager: the graphs that are compiled, run by torch; inductor: compiled, in a minute
    (adapted models always are: tests/model/test_lora.py). Fused kernels sum in another order:
    float32 rounding, which five steps of AdamW at this rate grow about tenfold (see the curves
    above), so 1e-6 instead of 1e-7."""
    from torch._dynamo.utils import counters
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()  # what other tests compiled of the same code would be taken up
    counters.clear()
    machine = Machine(torch.device("cpu"), torch.float32, compile=True)
    eager, compiled = (tiny_gpt(zero_outputs=True, n_layer=1) for _ in range(2))
    expected = losses_of(eager, steps=5)
    assert losses_of(compiled, machine, steps=5) == pytest.approx(expected, rel=1e-6)
    assert expected[-1] < expected[0] - 0.5
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1  # no break, no second shape
    eager.load_state_dict(compiled.state_dict())
    with torch.no_grad():  # outside training it is not compiled, whatever comes in
        for length in (3, 20):
            tokens = batch_of(2, length).inputs
            assert torch.equal(compiled.eval()(tokens), eager.eval()(tokens))
    assert counters["stats"]["unique_graphs"] == graphs


def half() -> Machine:
    machine = Machine(torch.device("cpu"), torch.float16)
    machine.peak_flops = 1e12  # not measured
    return machine


def half_step(model: GPT, scale: float | None = None) -> Step:
    """scale: of the losses at first; torch's own choice if None."""
    state = None if scale is None else {"scale": scale, "growth_factor": 2.0,
                                        "backoff_factor": 0.5, "growth_interval": 2000,
                                        "_growth_tracker": 0}
    return Step(model, optimizer_of(model), half(), 1.0, state)


def scale_of(step: Step) -> float:
    assert step.loss_scale is not None
    return step.loss_scale["scale"]


def small_gpt() -> GPT:
    return tiny_gpt(zero_outputs=True, n_layer=1).train()


def take(step: Step) -> tuple[float, float]:
    loss, norm = step.gradients([batch_of(4, 16)], lambda: None)
    step.apply()
    return float(loss), float(norm)


def test_in_float16_the_gradient_is_the_one_of_float32_up_to_rounding():
    model, exact = small_gpt(), small_gpt()
    step = half_step(model, 2.0**10)
    loss, norm = step.gradients([batch_of(4, 16)], lambda: None)
    other, exact_norm = Step(exact, optimizer_of(exact), CPU, 1.0).gradients([batch_of(4, 16)],
                                                                            lambda: None)
    # float16 has 11 digits; a norm and a mean of many numbers average most of that out.
    assert float(loss) == pytest.approx(float(other), rel=2**-10)
    assert float(norm) == pytest.approx(float(exact_norm), rel=2**-8)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        # A few of them in a row, on the scale of the largest.
        torch.testing.assert_close(p.grad, q.grad, rtol=0,
                                   atol=2**-6 * float(q.grad.abs().max()) + 1e-7)
    clipped = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm > 2 and float(clipped) == pytest.approx(1.0, rel=1e-4)


def test_an_overflow_leaves_the_update_out_halves_the_scale_and_training_goes_on():
    model = small_gpt()
    step, before = half_step(model, 2.0**40), weights_of(model)
    assert step.skips_overflows
    skipped = 0
    while scale_of(step) > 2.0**20 or torch.equal(weights_of(model), before):
        scale = scale_of(step)
        _, norm = take(step)
        if scale_of(step) < scale:
            assert scale_of(step) == scale / 2 and not math.isfinite(norm)
            assert torch.equal(weights_of(model), before)
            skipped += 1
    assert skipped >= 20
    assert all(p.grad is None for p in model.parameters())
    assert weights_of(model).isfinite().all()
    assert take(step)[0] < take(half_step(small_gpt()))[0]


def test_small_gradients_vanish_in_float16_unless_losses_are_scaled():
    """Negative control: what the scale is for."""
    def lost(scale: float) -> int:
        model = tiny_gpt(n_layer=1).train()
        half_step(model, scale).gradients([batch_of(4, 16)], lambda: None)
        return int((model.blocks[0].attention.qkv_proj.weight.grad == 0).sum())

    assert lost(2.0**-20) == 64 * 32 and lost(2.0**8) == 0


def test_a_loss_that_never_fits_into_float16_ends_training_with_advice():
    model = small_gpt()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("nan"))
    step, taken = half_step(model), 0
    with pytest.raises(TrainingFailed, match=r"float16 overflows however small the loss is made; "
                       r"use run\.dtype=bfloat16 or float32, or lower optim\.lr"):
        while taken < 100:
            take(step)
            taken += 1
    assert 2.0**16 * 0.5 ** (taken + 1) < SMALLEST_SCALE <= 2.0**16 * 0.5**taken


def test_the_loss_scale_survives_its_round_trip():
    model = small_gpt()
    step = half_step(model, 2.0**40)
    for _ in range(3):
        take(step)
    kept = json.loads(json.dumps(step.loss_scale))  # as state.json keeps it
    again = Step(model, optimizer_of(model), half(), 1.0, kept)
    assert again.loss_scale == step.loss_scale and scale_of(again) == 2.0**37
    assert Step(model, optimizer_of(model), CPU, 1.0, kept).loss_scale is None


HALF = {"eval": {"every_steps": 4}, "optim": {"warmup_steps": 0}}


def test_a_run_in_float16_learns_and_continues_to_the_same_bits(tmp_path):
    """The first steps overflow: scale and skipped updates belong to what is continued."""
    whole = trainer_of(tmp_path / "whole", half(), steps=10, **HALF)
    expected = finish(whole)
    finish(trainer_of(tmp_path / "cut", half(), steps=4, **HALF))
    state = checkpoint.read_state(tmp_path / "cut/checkpoints/step-00000004")
    assert state.loss_scale["scale"] < 2.0**16 and state.loss_scale["_growth_tracker"] < 4
    rest = trainer_of(tmp_path / "cut", half(), steps=10, **HALF)
    found = finish(rest)
    assert [line for line in found if line["event"] != "save"] == [
        line for line in expected if line["event"] != "save"]
    ends = [tmp_path / run / "checkpoints/step-00000010" for run in ("cut", "whole")]
    for name in ("model", "optimizer"):
        ours, theirs = (load_file(path / f"{name}.safetensors") for path in ends)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
    states = [checkpoint.read_state(path).loss_scale for path in ends]
    assert states[0] == states[1]

    train = [line for line in found if line["event"] == "train"]
    assert None in [line["grad_norm"] for line in train]  # what overflowed is null, not Infinity
    assert train[-1]["loss"] < train[0]["loss"] - 0.5
    plain = finish(trainer_of(tmp_path / "float32", CPU, steps=10, **HALF))
    assert found[-2]["val_loss"] == pytest.approx(plain[-2]["val_loss"], abs=0.5)


def test_a_run_in_float16_goes_on_in_float32_and_back(tmp_path):
    finish(trainer_of(tmp_path, half(), steps=4, **HALF))
    finish(trainer_of(tmp_path, CPU, steps=6, **HALF))
    assert checkpoint.read_state(tmp_path / "checkpoints/step-00000006").loss_scale is None
    lines = finish(trainer_of(tmp_path, half(), steps=8, **HALF))
    assert [line["step"] for line in lines if line["event"] == "train"] == list(range(1, 9))
