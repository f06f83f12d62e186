"""The machine: what "auto" resolves to, and seeds."""

from __future__ import annotations

import pytest
import torch

from gpt import runtime
from gpt.config import RunConfig
from gpt.errors import UserError
from gpt.runtime import choose_machine, launch, measure_matmul_flops, mix_seeds


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


def test_training_in_several_processes_or_in_float16_is_refused(monkeypatch):
    with (pytest.raises(UserError, match=r"float16: training in float16 needs"),
          launch(RunConfig(device="cpu", dtype="float16"))):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2"), launch(RunConfig(device="cpu")):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE=two"), launch(RunConfig(device="cpu")):
        pass


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


def test_compile_is_automatic_on_cuda_alone():
    with launch(RunConfig(device="cpu")) as machine:
        assert not machine.compile
    with launch(RunConfig(device="cpu", compile=True)) as machine:
        assert machine.compile


def test_signals_are_heard_while_a_run_lasts_and_given_back_after():
    import os
    import signal
    before = signal.getsignal(signal.SIGTERM)
    with launch(RunConfig(device="cpu")) as machine:
        os.kill(os.getpid(), signal.SIGTERM)
        assert machine.stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_gpus_peak_comes_from_its_data_sheet_and_a_cpus_is_measured(monkeypatch):
    assert measure_matmul_flops(torch.device("cpu"), torch.float32, size=64) > 0
    machine = runtime.Machine(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert machine.peak_flops == 989e12
    assert choose_machine("cpu", "float32").describe().endswith("float32")
