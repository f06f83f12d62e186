"""train.py with a fault at a known moment: python faulty_train.py FAULT … section.field=value …

A fault is NAME:STEP. It is patched into this process alone, so ranks can have different ones.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt.errors import run_command


def main(argv: list[str]) -> None:
    """What train.py does, once the faults that come first in argv are in effect."""
    import train
    while fault := re.fullmatch(r"([a-z-]+):(\d+)", argv[0]):
        FAULTS[fault[1]](int(fault[2]))
        del argv[0]
    train.main(argv)


def before(owner: Any, name: str, what: Callable[..., None]) -> None:
    """Let something happen whenever a function is called, and before it is."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what(*args)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def once_at(number: int, do: Callable[[], None]) -> Callable[..., None]:
    """What happens at one call alone, counted from 0."""
    calls = iter(range(10**9))
    return lambda *_: do() if next(calls) == number else None


def linger(moment: str, seconds: float = 1.0) -> None:
    """Say that the moment has come, and stay in it."""
    Path(moment).touch()
    time.sleep(seconds)


def failing_disk() -> None:
    """As a disk fails."""
    raise OSError(errno.EIO, "Input/output error", "runs/disk")


def mistake() -> None:
    """An error that nobody has thought of."""
    raise ZeroDivisionError("a mistake in the code")


def spoil_loss(number: int, spoil: Callable[[Any], Any]) -> None:
    """Make something else of the loss of one micro-batch."""
    from gpt.training import objective
    real, calls = objective.summed_loss, iter(range(10**9))
    objective.summed_loss = lambda model, batch: (  # type: ignore[assignment]
        spoil(real(model, batch)) if next(calls) == number else real(model, batch))


def infinite_gradient(loss: Any) -> Any:
    """The same loss, whose gradient overflows."""
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


def in_step(do: Callable[..., None]) -> None:
    from gpt.training.step import Step
    before(Step, "gradients", do)


def in_evaluation(do: Callable[..., None]) -> None:
    from gpt.training import evaluate
    before(evaluate, "summed_loss", do)


def in_save(do: Callable[..., None]) -> None:
    from gpt.runs.checkpoint import saving
    before(saving, "_seal", do)


# What happens at the call of some number, of those that the name is about.
FAULTS: dict[str, Callable[[int], None]] = {
    "nan": lambda at: spoil_loss(at, lambda loss: loss * math.nan),
    "infinite-gradient": lambda at: spoil_loss(at, infinite_gradient),
    "mistake": lambda at: in_step(once_at(at, mistake)),
    "failing-disk": lambda at: in_save(once_at(at, failing_disk)),
    "in-step": lambda at: in_step(once_at(at, lambda: linger("in-step"))),
    "in-evaluation": lambda at: in_evaluation(once_at(at, lambda: linger("in-evaluation"))),
    "in-save": lambda at: in_save(once_at(at, lambda: linger("in-save"))),
    "slow": lambda at: in_step(lambda *_: time.sleep(at / 1000)),
}

if __name__ == "__main__":
    run_command(main)
