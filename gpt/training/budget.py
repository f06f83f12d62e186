"""How long to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt.configuration import TrainConfig
from gpt.errors import UserError
from gpt.runs.checkpoint import TrainState


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or a number of seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, train: TrainConfig, sequences_per_epoch: int, tokens_per_sequence: float) -> Budget:
        """The budget that the configuration names; one epoch if it names none."""
        if train.max_minutes is not None:
            return cls(seconds=60 * train.max_minutes)
        if train.steps is not None:
            return cls(steps=train.steps)
        if train.tokens is not None:
            tokens_per_step = train.sequences_per_step * tokens_per_sequence
            if train.tokens < tokens_per_step:
                raise UserError(f"train.tokens={train.tokens} is less than one step of "
                                f"{tokens_per_step:.0f} tokens; raise it, or lower "
                                "train.batch_size")
            return cls(steps=int(train.tokens / tokens_per_step))
        sequences = (train.epochs or 1.0) * sequences_per_epoch
        return cls(steps=math.ceil(sequences / train.sequences_per_step))

    def progress(self, state: TrainState) -> float:
        """The share of the run that lies behind, 0 to 1."""
        if self.seconds is not None:
            return min(1.0, state.elapsed_seconds / self.seconds)
        assert self.steps is not None
        return min(1.0, state.step / self.steps)

    def is_spent(self, state: TrainState) -> bool:
        """Whether the run is over."""
        return self.progress(state) >= 1.0
