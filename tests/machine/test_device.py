"""The machine: what "auto" resolves to, and seeds."""

from __future__ import annotations

import pytest
import torch

from gpt.configuration import RunConfig
from gpt.errors import UserError
from gpt.machine import hardware
from gpt.machine.device import DTYPES, Machine, choose_machine, launch
from gpt.machine.hardware import measure_matmul_flops
from gpt.machine.seeds import mix_seeds


def test_bfloat16_is_the_default_where_the_hardware_computes_in_it(monkeypatch):
    for flags, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True},
                         torch.bfloat16), ({"avx512_f": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert choose_machine("cpu", "auto").dtype == dtype
        assert choose_machine("cpu", "float32").dtype == torch.float32


def test_autocast_computes_products_in_bfloat16_and_keeps_weights_in_float32():
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with choose_machine("cpu", "bfloat16").autocast():
        assert layer(x).dtype == torch.bfloat16
    with choose_machine("cpu", "float32").autocast():
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_what_is_not_there_is_refused_by_name():
    with pytest.raises(UserError, match=r"device=tpu is not available here; choose .*cpu"):
        choose_machine("tpu")
    with pytest.raises(UserError, match="dtype=int3 is unknown"):
        choose_machine("cpu", "int3")


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_training_runs_in_every_number_format(name, dtype):
    layer = torch.nn.Linear(4, 4)
    with launch(RunConfig(device="cpu", dtype=name)) as machine, machine.autocast():
        assert machine.dtype == dtype
        assert layer(torch.ones(2, 4)).dtype == dtype


def test_random_draws_of_a_step_depend_on_seed_and_step_alone():
    with launch(RunConfig(device="cpu", seed=5)) as machine:
        machine.seed_step(3)
        first = torch.rand(2)
        torch.rand(100)
        machine.seed_step(3)
        assert torch.equal(torch.rand(2), first)
        machine.seed_step(4)
        assert not torch.equal(torch.rand(2), first)
    assert len({mix_seeds(a, b) for a in range(50) for b in range(50)}) == 2500


def test_signals_are_heard_while_a_run_lasts_and_given_back_after():
    import os
    import signal
    before = signal.getsignal(signal.SIGTERM)
    with launch(RunConfig(device="cpu")) as machine:
        os.kill(os.getpid(), signal.SIGTERM)
        assert machine.stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_is_deterministic_unless_it_asks_not_to_be():
    for asked, expected in (({}, True), ({"deterministic": False}, False)):
        with launch(RunConfig(device="cpu", **asked)) as machine:
            assert machine.deterministic is expected


@pytest.mark.parametrize(("device", "ahead"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_accelerators_alone_compute_while_python_goes_on(device, ahead):
    assert Machine(torch.device(device), torch.float32).runs_ahead == ahead


def test_what_is_fetched_is_what_was_there():
    loss, norm = torch.tensor(1.5), torch.tensor(2.0)
    values = Machine(torch.device("cpu"), torch.float32).fetch(loss, norm)
    loss.fill_(7)
    assert values() == [1.5, 2.0]


def test_waiting_asks_the_device_that_computes_and_no_other(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(device.type))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: asked.append("mps"))
    for device in ("cuda", "mps", "cpu"):
        Machine(torch.device(device), torch.float32).wait()
    assert asked == ["cuda", "mps"]


def test_measuring_stops_after_six_products_or_a_second(monkeypatch):
    """A format that the processor lacks would take minutes; the best of several is the figure."""
    def measured(*durations: float) -> tuple[int, float]:
        moments = [moment for i, duration in enumerate(durations)
                   for moment in (sum(durations[:i]), sum(durations[:i]) + duration)]
        clock = iter(moments)
        monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
        flops = measure_matmul_flops(torch.device("cpu"), torch.float32, size=8)
        return (len(moments) - len(list(clock))) // 2, flops

    assert measured(0.5, 0.25, 0.125, 0.0625, 0.03125, 0.5, 1.0) == (6, 2 * 8**3 / 0.03125)
    assert measured(4.0, 1.0) == (1, 2 * 8**3 / 4)
    assert measured(0.5, 0.75, 0.1) == (2, 2 * 8**3 / 0.5)


def test_a_gpus_peak_comes_from_its_data_sheet_and_a_cpus_is_measured(monkeypatch):
    assert measure_matmul_flops(torch.device("cpu"), torch.float32, size=64) > 0
    machine = Machine(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert machine.peak_flops == 989e12
    assert choose_machine("cpu", "float32").describe().endswith("float32")
