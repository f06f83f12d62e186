"""What to do about a loss that is not finite, or far above those before it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt.configuration import TrainConfig
from gpt.machine.signals import resume_command
from gpt.optim import Muon, Optimizer
from gpt.runs.checkpoint import steps_in

RECENT = 64  # losses that a new one is compared with
FEWEST = 32  # of them, to say anything
FLOOR = 0.01  # nats: losses that hardly scatter are no reason to call a little more a spike
TO_SIGMA = 1.4826  # of a normal distribution: its standard deviation, by the median deviation


@dataclass(frozen=True)
class Trouble:
    """Something wrong with a step. said: what, for people. then: stop, skip, rollback or warn."""

    said: str
    then: str


class Divergence:
    """Looks at every step's loss and gradient.

    losses: of the steps before, the newest last; a checkpoint keeps them, so that a run that was
    stopped judges as one that was not.
    """

    def __init__(self, config: TrainConfig, losses: Iterable[float]):
        self._config, self.losses = config, deque(losses, RECENT)

    @property
    def judges_first(self) -> bool:
        """Whether a step must be judged before the weights follow it."""
        return "skip" in (self._config.on_nonfinite, self._config.on_spike)

    def trouble(self, loss: float, norm: float) -> Trouble | None:
        """What is wrong with a step; None, and the loss is remembered, if it may be taken."""
        if not math.isfinite(loss + norm):
            return Trouble(f"the loss is {loss} and the gradient norm {norm}",
                           self._config.on_nonfinite)
        score = robust_z_score(loss, self.losses)
        if score > self._config.spike_z_score:
            said = (f"the loss is {loss:.4f}, {score:.0f} times as far above the median of the "
                    f"last {len(self.losses)} steps ({statistics.median(self.losses):.4f}) as "
                    "these scatter")
            if self._config.on_spike == "warn":
                self.losses.append(loss)
            return Trouble(said, self._config.on_spike)
        self.losses.append(loss)
        return None


def robust_z_score(value: float, others: Iterable[float]) -> float:
    """How far a value lies above the median of others, in standard deviations as the median
    absolute deviation tells them; 0 for too few.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers".
    """
    others = list(others)
    if len(others) < FEWEST:
        return 0.0
    middle = statistics.median(others)
    scatter = TO_SIGMA * statistics.median(abs(other - middle) for other in others)
    return (value - middle) / max(scatter, FLOOR)


def way_on(optimizer: Optimizer, checkpoints: Path) -> str:
    """From where to go on, and by which command: the same once more would end the same way."""
    newest = next(iter(steps_in(checkpoints).values()), None)
    start = "the start, since nothing is saved," if newest is None else newest.name
    rates = {"optim.muon_lr" if isinstance(group.rule, Muon) else "optim.lr":
             f"{group.peak_lr / 2:.3g}" for group in optimizer.groups}
    return (f"go on from {start} at lower learning rates, or raise optim.warmup_steps: "
            f"{resume_command(rates)}")
