"""From a task to a trained run: open the folder, resume, train.

train.py and finetune.py each describe a Task, and share everything after that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt import checkpoint
from gpt.batches import Batches, SizedBatches
from gpt.batches.read_ahead import ReadAhead
from gpt.config import ModelConfig, RunSections
from gpt.errors import UserError
from gpt.evaluate import Score
from gpt.language_model import LanguageModel
from gpt.loop import Budget, Trainer
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.optim import build_optimizer, peak_lr
from gpt.plan import choose_micro_batch_size, measure_plan, memory_line
from gpt.run_folder import RunFolder, open_run
from gpt.runtime import Machine
from gpt.telemetry import RunLog
from gpt.tokenizer import Tokenizer

SAMPLE_TOKENS = 128


@dataclass(frozen=True)
class Task:
    """What is learned: a model to start from, training batches, and text to validate on.

    batches and validation take the micro-batch size, which is chosen for the machine.
    identity: what the result rests on; a run folder with another identity is refused.
    loader_workers: threads that read batches ahead.
    """

    model: ModelConfig
    build_model: Callable[[], GPT]
    tokenizer: Tokenizer
    batches: Callable[[int], Batches]
    validation: Callable[[int], SizedBatches]
    identity: dict[str, Any]
    evaluate_first: bool = False
    loader_workers: int = 0


def train_task(task: Task, config: RunSections, machine: Machine, dry_run: bool) -> Score | None:
    """Train, or say what training would cost. Returns the final score; None if nothing was done."""
    micro_batch_size = choose_micro_batch_size(config.train, task.model, machine)
    batches = task.batches(micro_batch_size)
    budget = Budget.of(config.train, batches.sequences_per_epoch,
                       batches.tokens_per_sequence)
    _refuse_long_prompts(task, config)
    if dry_run:
        model, optimizer, _ = _build(task, config, machine)
        print(measure_plan(model, optimizer, batches, budget, config.train, machine))
        return None
    if config.run.resume not in ("auto", "never"):
        _refuse_another_model(task, checkpoint.find(config.run.resume))
    with open_run(config, _identity(task, config)) as run:
        if run.is_complete and budget.is_spent(run.state):
            print(f"{run.path} is complete at step {run.state.step}; sample from it with: "
                  f"python sample.py {run.path}")
            return None
        run.record(config, machine)
        model, optimizer, lr = _build(task, config, machine)
        state = checkpoint.TrainState()
        if run.resume_from is not None:
            state = checkpoint.load_training(run.resume_from, model, optimizer)
        log = RunLog(run.path, config.log, config.model_dump(by_alias=True), state.step)
        with closing(log), ReadAhead(batches.step, task.loader_workers) as ahead:
            log.say(_opening_lines(run, model, lr, micro_batch_size, config, machine))
            trainer = Trainer(model, optimizer, lr, ahead.step,
                              lambda: task.validation(micro_batch_size), task.tokenizer, config,
                              budget, machine, run.path, log, state,
                              _sampler(model, task.tokenizer, machine), task.evaluate_first)
            score = trainer.run()
            log.say(f"done; sample from it with: python sample.py {run.path}")
            return score


def _build(task: Task, config: RunSections,
           machine: Machine) -> tuple[GPT, torch.optim.Optimizer, float]:
    """(model on its device, optimizer, peak learning rate)"""
    model = task.build_model()
    model.recompute = config.train.recompute_activations
    machine.place(model)
    lr = peak_lr(config.optim, task.model)
    return model, build_optimizer(model, config.optim, lr), lr


def _refuse_long_prompts(task: Task, config: RunSections) -> None:
    for prompt in config.log.sample_prompts if config.log.samples_every_steps else ():
        length, limit = len(task.tokenizer.encode(prompt)), task.model.block_size
        if length > limit:
            raise UserError(f"log.sample_prompts: a prompt has {length} tokens, the model reads "
                            f"{limit} (model.block_size); shorten it")


def _refuse_another_model(task: Task, path: Path) -> None:
    """A checkpoint given by run.resume=PATH may come from anywhere."""
    if checkpoint.load_model_config(path) != task.model:
        raise UserError(f"run.resume: {path} holds another architecture than model.* asks for")
    if checkpoint.load_tokenizer(path).fingerprint != task.tokenizer.fingerprint:
        raise UserError(f"run.resume: {path} was trained with another tokenizer than the dataset's")


def _identity(task: Task, config: RunSections) -> dict[str, Any]:
    return {"run.seed": config.run.seed, "train.batch_size": config.train.batch_size,
            **{f"model.{name}": value for name, value in task.model.model_dump().items()},
            "tokenizer": task.tokenizer.fingerprint, **task.identity}


def _opening_lines(run: RunFolder, model: GPT, lr: float, micro_batch_size: int,
                   config: RunSections, machine: Machine) -> str:
    """What is trained, on what, in what portions."""
    lines = [f"{run.path}: {parameter_count(model):,} parameters, {flops_per_token(model):,} FLOPs "
             f"per token, on {machine.describe()}",
             f"steps of {config.train.batch_size} sequences in micro-batches of "
             f"{micro_batch_size}, learning rate {lr:.3g} ({config.optim.schedule})",
             memory_line(model, micro_batch_size, config.train.recompute_activations)]
    if run.resume_from is not None:
        lines.append(f"continuing from {run.resume_from}")
    return "\n".join(lines)


def _sampler(model: GPT, tokenizer: Tokenizer, machine: Machine) -> Callable[[str], str]:
    """Text that the model in training would write after a prompt."""
    lm = LanguageModel(model, tokenizer, machine)

    def sample(prompt: str) -> str:
        room = model.config.block_size - len(lm.prompt_tokens(prompt))
        model.eval()
        text = lm.generate(prompt, max_new_tokens=max(0, min(SAMPLE_TOKENS, room)),
                           temperature=0.8, top_k=50, seed=0)
        model.train()
        return text

    return sample
