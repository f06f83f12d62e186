"""From a task to a trained run: open the folder, resume, train.

train.py and finetune.py each describe a Task, and share everything after that.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from gpt.batches import Batches, ReadAhead, SizedBatches
from gpt.chat import converses
from gpt.configuration import ModelConfig, RunSections, fields
from gpt.errors import UserError, WorkFailed
from gpt.language_model import LanguageModel
from gpt.machine.device import Machine
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.optim import Optimizer, Rates, WeightAverage, build_optimizer
from gpt.parallel import Layout, choose_layout
from gpt.runs import checkpoint
from gpt.runs.folder import RunFolder, changes, code_hash, open_run
from gpt.tokenizer import Tokenizer
from gpt.training.budget import Budget
from gpt.training.choices import Portion, choose_portion, compile_pays, evaluation_tokens
from gpt.training.cooldown import warming_up_again
from gpt.training.core import core_bundle, core_measure, core_work
from gpt.training.evaluate import Measured, Score, evaluate
from gpt.training.intact import Intact
from gpt.training.loop import Trainer, gave_up, is_due
from gpt.training.objective import Objective
from gpt.training.plan import Plan, Work, measure_plan, memory_line
from gpt.training.samples import refuse_long_prompts, sampler
from gpt.training.step import Step
from gpt.training.telemetry import Log, RunLog

TIMED_BATCHES = 4  # of validation, to plan with


@dataclass(frozen=True)
class Task:
    """What is learned: a model to start from, training batches, and text to validate on.

    batches takes what one backward pass reads, and validation how many tokens are scored together,
    both chosen for the machine. longest: tokens of the longest sequence, where they differ in
    length; None: all have the model's block_size.
    identity: what the result rests on; a run folder with another identity is refused.
    loader_workers: threads that read batches ahead.
    objective: what is made small; None: the next token's loss.
    best_by: the figure of `measure` that says which checkpoint is best; None: the validation loss.
    before_learning: what is done with the model that training starts from, on its machine.
    measure: figures besides the validation loss, and answers to look at.
    opening_lines: what is said of what is learned, when the run begins.
    closing_lines: what is said of a run that was trained to its end, in its folder.
    prompt_tokens: how samples are asked for; None: as plain text.
    keep_base: writes the model that adapters adapt into a folder; None: all weights are saved.
    look: reads all of the files that batches come from, and says which is not what it was.
    """

    model: ModelConfig
    build_model: Callable[[], GPT]
    tokenizer: Tokenizer
    batches: Callable[[Portion], Batches]
    validation: Callable[[int], SizedBatches]
    identity: dict[str, Any]
    longest: int | None = None
    evaluate_first: bool = False
    loader_workers: int = 0
    objective: Objective | None = None
    best_by: str | None = None
    before_learning: Callable[[GPT, Machine], None] | None = None
    measure: Callable[[LanguageModel], Measured] = lambda lm: Measured({}, [])
    opening_lines: Callable[[], Iterable[str]] = tuple
    closing_lines: Callable[[Path], Iterable[str]] = lambda folder: ()
    prompt_tokens: Callable[[str], list[int]] | None = None
    keep_base: Callable[[Path], None] | None = None
    look: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Setting:
    """What a task and a configuration become on a machine."""

    layout: Layout
    portion: Portion
    batches: Batches
    validation: Callable[[], SizedBatches]
    budget: Budget
    rates: Rates

    @classmethod
    def of(cls, task: Task, config: RunSections, machine: Machine) -> Setting:
        """Chosen, before anything is made. Raises UserError for what cannot be."""
        agree(config, task, machine)
        core_bundle(config.eval)
        layout = choose_layout(config, task.model, machine)
        portion = choose_portion(config.train, task.model, machine, task.longest)
        scored_together = evaluation_tokens(config.train, task.model, machine, task.longest)
        batches = task.batches(portion)
        refuse_long_prompts(config.log, task.prompt_tokens or task.tokenizer.encode,
                            task.model.block_size)
        return cls(layout, portion, batches, lambda: task.validation(scored_together),
                   Budget.of(config.train, batches.sequences_per_epoch,
                             batches.tokens_per_sequence),
                   Rates.of(config.optim, task.model,
                            config.train.sequences_per_step * batches.tokens_per_sequence))


def train_task(task: Task, config: RunSections, machine: Machine, dry_run: bool,
               report: Callable[[Path], str] | None = None) -> Score | None:
    """Train, or say what training would cost. Returns the final score; None if nothing was done.

    report: writes one on a run's folder, once it has ended or failed, and returns what is said.
    """
    if dry_run:
        print(cost_of(task, config, machine))
        return None
    setting = Setting.of(task, config, machine)
    layout, batches, budget, rates = setting.layout, setting.batches, setting.budget, setting.rates
    if config.run.resume not in ("auto", "never"):
        _refuse_another_model(task, checkpoint.find(config.run.resume))
    first = machine.ranks.first
    with machine.ranks.first_has(open_run(config, _identity(task, config, rates))) as run:
        if first(lambda: _is_over(run, config, budget)):
            print(f"{run.path} is complete at step {run.state.step}; sample from it with: "
                  f"{_sample_command(run, task.tokenizer)}")
            return None
        model, optimizer = _build(task, config, setting)
        before = first(run.recorded)
        first(lambda: run.record(config, machine))
        first(lambda: _keep_base(task, run))
        if task.before_learning is not None:
            with layout.measuring():
                task.before_learning(model, machine)
        state = checkpoint.TrainState()
        if run.resume_from is not None:
            state = checkpoint.load_training(run.resume_from, model, optimizer, layout)
        average = WeightAverage.continued(model, optimizer.state, rates.ema_decay)
        lm = LanguageModel(model, task.tokenizer, machine)
        measured = LanguageModel(model, task.tokenizer, machine.measuring(config.eval.dtype))
        log = _log(run, config, budget, state) if machine.ranks.is_first else Log()
        with closing(log), ReadAhead(batches.step, task.loader_workers) as ahead:
            log.say(_opening_lines(run, task, model, config, setting))
            for line in _what_changed(run, before, config, budget, batches):
                log.warn(state.step, line)
            intact = Intact(ahead.step, task.look if machine.ranks.is_first else lambda: None)
            trainer = Trainer(model, optimizer, intact.step,
                              setting.validation, task.tokenizer, config,
                              budget, machine, run.path, log, state,
                              sampler(lm, task.prompt_tokens), average, task.evaluate_first,
                              lambda: task.measure(measured), core_measure(config.eval, measured),
                              task.objective, task.best_by, layout, batches.origins)
            wanted = report if config.log.report and machine.ranks.is_first else None
            return _trained(trainer, task, run, wanted)


def _trained(trainer: Trainer, task: Task, run: RunFolder,
             report: Callable[[Path], str] | None) -> Score | None:
    """The final score. What makes training fail is logged, and stands in the report."""
    log = trainer.log
    try:
        score = trainer.run()
    except WorkFailed as error:
        with contextlib.suppress(OSError):  # a disk that is full, say, which is what failed
            log.event("warning", trainer.state.step, message=str(error))
            _report(report, run, log)
        raise
    if trainer.budget.is_spent(trainer.state) and trainer.machine.ranks.is_first:
        for line in task.closing_lines(run.path):
            log.say(line)
    _report(report, run, log)
    log.say(f"done; sample from it with: {_sample_command(run, task.tokenizer)}")
    return score


def _report(report: Callable[[Path], str] | None, run: RunFolder, log: Log) -> None:
    if report is not None:
        log.say(report(run.path))


def agree(config: RunSections, task: Task, machine: Machine) -> None:
    """Raise UserError if processes that are to train together would not train the same."""
    if machine.ranks.size > 1:
        configured = fields(config.model_dump(by_alias=True))
        machine.ranks.agree(**{
            **{name: str(value) for name, value in configured.items()},
            **{name: str(value)[:16] for name, value in task.identity.items()},
            "tokenizer": task.tokenizer.fingerprint[:16], "code": code_hash()[:16],
            "torch": torch.__version__, "device": machine.device.type, "dtype": str(machine.dtype)})


def _is_over(run: RunFolder, config: RunSections, budget: Budget) -> bool:
    """Whether nothing is left to do."""
    best = checkpoint.read_best(run.path / "checkpoints", run.state.step)
    return run.is_complete and (budget.is_spent(run.state)
                                or gave_up(config.eval, run.state.step, best))


def _log(run: RunFolder, config: RunSections, budget: Budget, state: checkpoint.TrainState) -> Log:
    """Where the run tells what it does, without what will happen again."""
    best = checkpoint.read_best(run.path / "checkpoints", state.step)
    return RunLog(run.path, config.log, config.model_dump(by_alias=True), state.step,
                  _happens_again(config, budget, state, best))


def _happens_again(config: RunSections, budget: Budget, state: checkpoint.TrainState,
                   best: checkpoint.Best | None) -> list[str]:
    """Events of the step that training goes on from which come once more."""
    if state.step == 0:
        return ["eval", "core", "sample", "end"]
    ends = budget.is_spent(state) or gave_up(config.eval, state.step, best)
    return [event for event, every in (("eval", config.eval.every_steps),
                                       ("core", config.eval.core_every_steps),
                                       ("sample", config.log.samples_every_steps))
            if ends or is_due(state.step, every)]


def _what_changed(run: RunFolder, before: dict[str, Any], config: RunSections, budget: Budget,
                  batches: Batches) -> list[str]:
    """A line for each value that is not what it was when the run was last at work."""
    if run.resume_from is None or not before:
        return []
    lines = changes(before, config)
    with contextlib.suppress(UserError, ValidationError):  # of another version, say
        old = type(config).model_validate(before)
        told = warming_up_again(
            (old.optim, Budget.of(old.train, batches.sequences_per_epoch,
                                  batches.tokens_per_sequence)),
            (config.optim, budget), run.state, run.path / "checkpoints")
        lines += [told] if told else []
    return lines


def _sample_command(run: RunFolder, tokenizer: Tokenizer) -> str:
    """How the trained model is asked: in the format that it learned."""
    chat = " --chat" if converses(tokenizer) else ""
    return f"python sample.py {run.path}{chat}"


def _build(task: Task, config: RunSections, setting: Setting) -> tuple[GPT, Optimizer]:
    """(model on its device or devices, its optimizer)"""
    layout, machine, budget = setting.layout, setting.layout.machine, setting.budget
    with layout.building():
        model = task.build_model()
    model.recompute = config.train.recompute_activations
    tokens = ((budget.steps or 0) * config.train.sequences_per_step
              * setting.batches.tokens_per_sequence)
    machine.compile = compile_pays(config.run, tokens * flops_per_token(model), budget, machine)
    layout.place(model)
    return model, layout.optimizer(build_optimizer(model, config.optim, setting.rates))


def _keep_base(task: Task, run: RunFolder) -> None:
    """What adapters adapt is kept once, so that the run's folder is all that a model needs."""
    folder = checkpoint.base_folder(run.path)
    if task.keep_base is not None and checkpoint.damage(folder):
        task.keep_base(folder)


def cost_of(task: Task, config: RunSections, machine: Machine) -> Plan:
    """What a run would cost, from doing a little of it."""
    setting = Setting.of(task, config, machine)
    layout, rates = setting.layout, setting.rates
    model, optimizer = _build(task, config, setting)
    step = Step(model.train(), optimizer, machine, config.train.grad_clip,
                average=WeightAverage.continued(model, optimizer.state, rates.ema_decay),
                objective=task.objective, layout=layout)
    lm = LanguageModel(model, task.tokenizer, machine)
    measured = LanguageModel(model, task.tokenizer, machine.measuring(config.eval.dtype))
    validation = setting.validation()
    some = [validation[i] for i in range(min(TIMED_BATCHES, len(validation)))]
    lengths = torch.from_numpy(task.tokenizer.byte_lengths())
    sample, prompts = sampler(lm, task.prompt_tokens), config.log.sample_prompts

    def measure() -> None:  # without dropout, as in the run
        model.eval()
        task.measure(measured)
        model.train()

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        if task.keep_base is not None:  # which checkpoints of adapters refer to
            task.keep_base(checkpoint.base_folder(Path(folder)))
        evals, saves = config.eval.every_steps, config.checkpoint.every_steps
        room: checkpoint.Room = {}

        def save() -> None:  # at once: at most as long as while training goes on
            contents = checkpoint.Contents.of(Path(folder), model, optimizer, task.tokenizer,
                                              checkpoint.TrainState(), layout)
            if config.checkpoint.background:
                contents = contents.copied(room)
            checkpoint.write(checkpoints, contents, config.checkpoint.shard_size)

        besides = [Work(save, (saves, evals)), *core_work(config.eval, measured)]
        if some:
            share = len(some) / len(validation)
            besides += [Work(lambda: evaluate(model, some, lengths, measured.machine), (evals,),
                             task.evaluate_first, share),
                        Work(measure, (evals,), task.evaluate_first)]
        if config.log.samples_every_steps is not None:
            besides.append(Work(lambda: [sample(prompt) for prompt in prompts],
                                (config.log.samples_every_steps,)))
        return measure_plan(model, step, setting.batches, setting.budget, besides, machine)


def _refuse_another_model(task: Task, path: Path) -> None:
    """A checkpoint given by run.resume=PATH may come from anywhere."""
    if checkpoint.load_model_config(path) != task.model:
        raise UserError(f"run.resume: {path} holds another architecture than model.* asks for")
    if checkpoint.load_tokenizer(path).fingerprint != task.tokenizer.fingerprint:
        raise UserError(f"run.resume: {path} was trained with another tokenizer than the dataset's")


def _identity(task: Task, config: RunSections, rates: Rates) -> dict[str, Any]:
    return {"run.seed": config.run.seed, "train.batch_size": config.train.sequences_per_step,
            "optim.name": rates.name, "optim.ema_half_life": config.optim.ema_half_life,
            **{f"model.{name}": value for name, value in task.model.model_dump().items()},
            "tokenizer": task.tokenizer.fingerprint, **task.identity}


def _opening_lines(run: RunFolder, task: Task, model: GPT, config: RunSections, setting: Setting
                   ) -> str:
    """What is trained, on what, in what portions."""
    machine, portion, rates = setting.layout.machine, setting.portion, setting.rates
    tokens = portion.sequences * (task.longest or task.model.block_size)
    lines = [f"{run.path}: {parameter_count(model):,} parameters, {flops_per_token(model):,} FLOPs "
             f"per token, on {machine.describe()}",
             f"steps of {config.train.sequences_per_step} sequences in micro-batches of {portion}; "
             f"{rates}; schedule {config.optim.schedule}",
             memory_line(model, rates, min(tokens, portion.tokens or tokens),
                         config.train.recompute_activations,
                         copied=config.checkpoint.background and machine.device.type == "cpu"
                         and config.checkpoint.every_steps is not None)]
    lines += [*task.opening_lines(), *setting.layout.lines]
    if run.resume_from is not None:
        lines.append(f"continuing from {run.resume_from}")
    return "\n".join(lines)
