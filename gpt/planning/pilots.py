"""Short training runs on the text at hand, to learn what a longer one will give."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace

from gpt.configuration import PretrainConfig
from gpt.evaluation import Scored, score_tokens
from gpt.language_model import LanguageModel
from gpt.machine.device import Machine
from gpt.planning.copier import beside_a_copier
from gpt.planning.costs import Counts
from gpt.planning.devices import in_silence
from gpt.planning.law import Run
from gpt.shards import Dataset
from gpt.training.choices import evaluation_tokens
from gpt.training.evaluate import Measured
from gpt.training.pretraining import pretraining
from gpt.training.task import train_task


@dataclass(frozen=True)
class Pilot:
    """A short run, and the seconds that it took."""

    run: Run
    seconds: float

    def __str__(self) -> str:
        return (f"{self.run.parameters:,} parameters in layers, {self.run.tokens:,} tokens: "
                f"{self.run.loss:.4f} nats per token, {self.run.beside:.4f} beside a copier, after "
                f"{self.seconds:.0f} s")


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
        task = pretraining(quiet, dataset)
        found: list[Scored] = []

        def measure(lm: LanguageModel) -> Measured:
            validation = task.validation(evaluation_tokens(quiet.train, task.model, machine))
            found.append(score_tokens(lm.model, validation, lm.machine))
            return Measured({}, [])

        scored_once = replace(task, measure=measure,  # which scores all that there is
                              validation=lambda tokens: [task.validation(tokens)[0]])
        train_task(scored_once, quiet, machine, False)
    scored = found[-1]
    tokens = (config.train.steps or 0) * config.train.sequences_per_step * config.model.block_size
    return Pilot(Run(parameters, tokens, len(dataset.train), float(scored.losses.mean(dtype=float)),
                     beside_a_copier(scored)), time.monotonic() - began)
