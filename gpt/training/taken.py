"""What a step tells: a line of metrics.jsonl, and the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gpt.batches import MicroBatch
from gpt.machine.device import Machine
from gpt.machine.progress import progress_bar
from gpt.runs.checkpoint import TrainState
from gpt.training.budget import Budget
from gpt.training.telemetry import Log


@dataclass(frozen=True)
class Taken:
    """A step that was taken, before the device was asked what came of it.

    batch: this process's share of what it read. told: the loss, the gradient's norm, and the
    objective's figures.
    """

    state: TrainState
    batch: list[MicroBatch]
    told: Callable[[], list[float]]
    figures: list[str]
    rates: dict[str, float]
    tokens: int
    sequence_tokens: int
    seconds: float
    data_seconds: float

    def report(self, told: list[float], flops: int, machine: Machine, log: Log | None,
               bar: tqdm[Any]) -> None:
        """flops: per token. log: None: this step is left out of it."""
        state, (loss, norm, *figures) = self.state, told
        rate = self.tokens / self.seconds
        mfu = flops * rate / (machine.ranks.size * machine.peak_flops)
        if log is not None:
            log.event("train", state.step, tokens=state.tokens,
                      elapsed_seconds=state.elapsed_seconds, loss=loss, **self.rates,
                      grad_norm=norm, data_seconds=self.data_seconds, tokens_per_second=rate,
                      flops_per_token=flops, mfu=mfu,
                      peak_memory_bytes=machine.peak_memory_bytes(),
                      **dict(zip(self.figures, figures, strict=True)))
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tok/s, {mfu:.0%} of peak",
                            refresh=False)


def by_name(rates: dict[str, float]) -> dict[str, float]:
    """Learning rates as metrics.jsonl has them: `lr` is AdamW's, the others carry their group."""
    adamw = next((name for name in rates if name != "matrices"), "matrices")
    return {"lr": rates[adamw]} | {f"lr_{group}": rate for group, rate in rates.items()}


def training_bar(budget: Budget, state: TrainState) -> tqdm[Any]:
    """In seconds where time is what is limited, else in steps."""
    if budget.seconds is not None:
        layout = ("{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s, "
                  "{remaining} left{postfix}")
        return progress_bar("training", budget.seconds, "s", initial=state.elapsed_seconds,
                            bar_format=layout)
    assert budget.steps is not None
    return progress_bar("training", budget.steps, "step", initial=state.step)
