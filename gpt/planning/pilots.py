"""Short training runs on the text at hand, to learn what a longer one will give."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass

from gpt.configuration import PretrainConfig
from gpt.machine.device import Machine
from gpt.planning.costs import Counts
from gpt.planning.devices import in_silence
from gpt.planning.law import Run
from gpt.shards import Dataset
from gpt.training.pretraining import pretraining
from gpt.training.task import train_task


@dataclass(frozen=True)
class Pilot:
    """A short run, and the seconds that it took."""

    run: Run
    seconds: float

    def __str__(self) -> str:
        return (f"{self.run.parameters:,} parameters in layers, {self.run.tokens:,} tokens: "
                f"{self.run.loss:.4f} nats per token after {self.seconds:.0f} s")


def train(config: PretrainConfig, dataset: Dataset, machine: Machine) -> Pilot:
    """Train in this process, in silence; nothing is left."""
    parameters = Counts.of(config).layer_parameters
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, in_silence():
        quiet = config.model_copy(update={
            "run": config.run.model_copy(update={"out_dir": folder, "compile": False}),
            "eval": config.eval.model_copy(update={"every_steps": None}),
            "checkpoint": config.checkpoint.model_copy(update={"every_steps": None}),
            "log": config.log.model_copy(update={
                "report": False, "samples_every_steps": None, "wandb": "disabled"})})
        machine.seed_step()  # as at the start of a run
        score = train_task(pretraining(quiet, dataset), quiet, machine, False)
    assert score is not None  # there is a validation split
    tokens = (config.train.steps or 0) * config.train.sequences_per_step * config.model.block_size
    return Pilot(Run(parameters, tokens, len(dataset.train), score.loss), time.monotonic() - began)
