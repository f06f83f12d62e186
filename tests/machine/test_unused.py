"""What users may have paid for and do not use is said."""

from __future__ import annotations

import pytest
import torch

from gpt.launcher import Place
from gpt.machine import unused
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks

SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _a_host_with_eight_cores(monkeypatch):
    monkeypatch.setattr(unused, "cores", lambda: 8)
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


def warned(device: str, processes: int) -> list[str]:
    place = Place(0, processes, 0, processes)
    return unused.warnings(Machine(torch.device(device), torch.float32, ranks=Ranks(here=place)))


def test_a_batch_script_that_forgot_srun_is_told_so(monkeypatch):
    assert warned("cpu", 1) == []
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    [line] = warned("cpu", 1)
    assert line == ("warning: Slurm gives this job 4 tasks, and one process was started: start it "
                    "with srun, or by torchrun")


@pytest.mark.parametrize(("gpus", "processes", "idle"), [(8, 1, 7), (8, 6, 2), (8, 8, 0), (1, 1, 0),
                                                         (1, 4, 0)])  # srun may show one alone
def test_gpus_that_nobody_uses_are_counted(monkeypatch, gpus, processes, idle):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    expected = [f"warning: {idle} of this host's {gpus} GPUs are not used: torchrun "
                f"--nproc-per-node={gpus}"] * bool(idle)
    assert warned("cuda", processes) == expected
    assert warned("cpu", 1) == []  # which asked for none


@pytest.mark.parametrize(("processes", "threads", "too_many"), [
    (2, 4, False), (2, 5, True), (1, 64, False), (8, 1, False), (9, 1, True)])
def test_more_threads_than_cores_are_told_where_processes_share_a_host(
        monkeypatch, processes, threads, too_many):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    lines = warned("cpu", processes)
    assert bool(lines) is too_many
    for line in lines:
        assert line.startswith(f"warning: {processes} processes with {threads} threads each share "
                               "this host's 8 cores, and wait for each other: start fewer")
        assert ("OMP_NUM_THREADS" in line) is (threads > 1)
