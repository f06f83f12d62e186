"""What to do after a loss that is not finite: the same once more would end the same way."""

from __future__ import annotations

from pathlib import Path

from gpt.machine.signals import resume_command
from gpt.optim import Muon, Optimizer
from gpt.runs.checkpoint import steps_in


def way_on(optimizer: Optimizer, checkpoints: Path) -> str:
    """From where to go on, and by which command."""
    newest = next(iter(steps_in(checkpoints).values()), None)
    start = "the start, since nothing is saved," if newest is None else newest.name
    rates = {"optim.muon_lr" if isinstance(group.rule, Muon) else "optim.lr":
             f"{group.peak_lr / 2:.3g}" for group in optimizer.groups}
    return (f"go on from {start} at lower learning rates, or raise optim.warmup_steps: "
            f"{resume_command(rates)}")
