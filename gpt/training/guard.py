"""What becomes of a step whose loss is not as it has to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gpt.batches import MicroBatch, Origin
from gpt.configuration import RunSections
from gpt.errors import TrainingFailed
from gpt.machine.device import Machine
from gpt.runs.checkpoint import Contents, TrainState
from gpt.training import incidents
from gpt.training.divergence import Divergence
from gpt.training.telemetry import Log

Way = Literal["take", "skip", "rollback"]
DONE = {"skip": "this step is left out", "rollback": "the run goes back"}


class Guard:
    """Judges the steps of a run; what it stops is written down as an incident.

    contents: what would be saved of a state. origins: what the sequences of a step's batch are made
    of. advice: how to go on after the run has failed.
    """

    def __init__(self, folder: Path, config: RunSections, machine: Machine, log: Log,
                 divergence: Divergence, contents: Callable[[TrainState], Contents],
                 origins: Callable[[int], list[list[list[Origin]]]], advice: Callable[[], str]):
        self._folder, self._config, self._machine, self._log = folder, config, machine, log
        self._divergence, self._contents = divergence, contents
        self._origins, self._advice = origins, advice
        # An accelerator is not waited for, unless a step may be left out.
        self.judges_first = not machine.runs_ahead or divergence.judges_first

    def way(self, before: TrainState, loss: float, norm: float, batch: list[MicroBatch]) -> Way:
        """Whether the weights may follow a step's gradient, or might have done; else whether that
        step is left out, or the run is to go back. All processes are told the same.

        before: the run before the step. batch: what this process read. Raises TrainingFailed if the
        run is to stop.
        """
        if self._config.train.on_spike != "warn":  # by numbers that are the same to the last bit
            loss, norm = self._machine.ranks.first(lambda: (loss, norm))
        trouble = self._divergence.trouble(loss, norm)
        if trouble is None:
            return "take"
        if trouble.then == "warn":
            self._log.warn(before.step, f"step {before.step}: {trouble.said}")
            return "take"
        late = not self.judges_first
        path = incidents.Incident(
            trouble.said, loss, norm, batch, self._origins(before.next_batch), late).write(
            self._contents(before), self._config)
        self._log.say(f"what step {before.step} read is kept; to take it again: "
                      f"python -m gpt replay {path}")
        said, most = f"step {before.step}: {trouble.said}", self._config.train.max_incidents
        if trouble.then != "stop" and self._machine.ranks.first(
                lambda: incidents.count(self._folder)) <= most:
            self._log.warn(before.step, f"{said}; {DONE[trouble.then]}")
            return "skip" if trouble.then == "skip" else "rollback"
        many = f", the last of more than train.max_incidents={most}" * (trouble.then != "stop")
        kept = "were not saved" if late else "were not changed"
        raise self._machine.ranks.alike(TrainingFailed(
            f"{said}{many}; the weights {kept}; {self._advice()}"))
