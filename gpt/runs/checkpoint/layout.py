"""What lies in a checkpoint: names of files, how far the run had come, which weights these are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    with_config,
)

from gpt.errors import UserError
from gpt.files import read_json, write_json

FORMAT_VERSION = 1
OPTIMIZER = "optimizer.safetensors"
_AS_WRITTEN = ConfigDict(extra="forbid")
Number = Annotated[StrictInt, Field(ge=0, le=2**53)]
Seconds = Annotated[StrictFloat, Field(ge=0, le=1e12, allow_inf_nan=False)]
Loss = Annotated[StrictFloat, Field(allow_inf_nan=False)]


@with_config(_AS_WRITTEN)
@dataclass
class TrainState:
    """How far a run has come."""

    step: Number = 0  # optimizer updates done
    tokens: Number = 0  # training tokens read
    elapsed_seconds: Seconds = 0.0  # time spent training, summed over restarts
    loss_scale: dict[str, Any] | None = None  # of float16's losses
    passed_over: Number = 0  # batches that were left out when the run went back: see guard.py
    losses: list[Loss] = field(default_factory=list)  # of the last steps, the newest last

    @property
    def next_batch(self) -> int:
        """What the next step reads, counted from 0."""
        return self.step + self.passed_over


def read_state(checkpoint: Path) -> TrainState:
    """How far the run had come when this was saved. Raises UserError."""
    try:
        return _STATE.validate_python(read_json(checkpoint / "state.json"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "it"
        raise UserError(f"{checkpoint / 'state.json'} is damaged: {where}: {problem['msg']}"
                        ) from error


@with_config(_AS_WRITTEN)
@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest validation loss so far, as best.json names it.

    ended_at: the step at which the run ended because no lower one was found.
    """

    step: Number
    val_loss: StrictFloat
    ended_at: Number | None = None


def read_best(folder: Path, up_to_step: int) -> Best | None:
    """The best checkpoint known when the run had come to a step; None if there was none."""
    try:
        best = _BEST.validate_python(read_json(folder / "best.json"))
    except (UserError, ValidationError):
        return None
    return best if best.step <= up_to_step else None


def write_best(folder: Path, best: Best) -> None:
    """Name the best checkpoint."""
    write_json(folder / "best.json",
               {name: value for name, value in asdict(best).items() if value is not None})


_STATE, _BEST = TypeAdapter(TrainState), TypeAdapter(Best)


def base_folder(run: Path) -> Path:
    """Where a run whose adapters alone learn keeps what they adapt."""
    return run / "base"
