"""What of a host nobody uses, and what more processes use than there is of it."""

from __future__ import annotations

import torch

from gpt import launcher
from gpt.machine.device import Machine
from gpt.machine.neighbours import cores


def warnings(machine: Machine) -> list[str]:
    """A line for each, as rank 0 sees it on its host."""
    processes, lines = machine.ranks.here.local_size, []
    if idle := launcher.unused_processes():
        lines.append(f"warning: Slurm gives this job {idle + 1} tasks, and one process was started:"
                     " start it with srun, or by torchrun")
    if machine.device.type == "cuda" and (there := torch.cuda.device_count()) > processes:
        lines.append(f"warning: {there - processes} of this host's {there} GPUs are not used: "
                     f"torchrun --nproc-per-node={there}")
    threads = torch.get_num_threads()
    if machine.device.type == "cpu" and processes > 1 and cores() < processes * threads:
        lines.append(f"warning: {processes} processes with {threads} threads each share this "
                     f"host's {cores()} cores, and wait for each other: start fewer processes"
                     + ", or set a lower OMP_NUM_THREADS" * (threads > 1))
    return lines
