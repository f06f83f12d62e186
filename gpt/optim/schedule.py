"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math

from gpt.configuration import OptimConfig


def lr_factor(optim: OptimConfig, step: int, progress: float) -> float:
    """The learning rate at a step, as a share of its peak.

    step: 0 for the first update. progress: the share of the run that lies behind, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    return warmup * _after_warmup(optim, min(1.0, max(0.0, progress)))


def _after_warmup(optim: OptimConfig, progress: float) -> float:
    floor = optim.min_lr_fraction
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    left = 1 - progress  # wsd
    if left >= optim.cooldown_fraction:
        return 1.0
    return floor + (1 - floor) * left / optim.cooldown_fraction
