"""A fine-tuning run, put together: what "auto" is here, and the examples as a task."""

from __future__ import annotations

import math

from gpt.batches import Batches, Order
from gpt.configuration import FinetuneConfig
from gpt.errors import UserError
from gpt.finetuning.measures import figures
from gpt.finetuning.method import learning_rate
from gpt.finetuning.preferences import PreferenceObjective
from gpt.finetuning.rows import padded_batches
from gpt.finetuning.task_rows import TaskRows, sequences_per_step
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.runs.saved_model import SavedModel
from gpt.training.budget import Budget
from gpt.training.task import Task

WARMUP_SHARE = 0.1  # of a run's steps, at most


def settled(config: FinetuneConfig) -> FinetuneConfig:
    """What "auto" is in fine-tuning: AdamW.

    Muon moves all directions of a matrix alike, also those that pretraining settled.
    """
    if config.optim.name == "muon" and config.finetune.method != "full":
        raise UserError("optim.name=muon is for whole matrices; adapters (finetune.method="
                        f"{config.finetune.method}) learn with adamw")
    if config.optim.name != "auto":
        return config
    return config.model_copy(update={"optim": config.optim.model_copy(update={"name": "adamw"})})


def with_defaults(config: FinetuneConfig, rows: TaskRows, base: SavedModel) -> FinetuneConfig:
    """Numbers where train.batch_size and optim.lr are "auto"; a warm-up that suits short runs."""
    train, optim, packing = config.train, config.optim, config.finetune.packing
    if train.batch_size == "auto":
        size = sequences_per_step(rows.train.rows.rows, rows.sequences(packing))
        train = train.model_copy(update={"batch_size": size})
    if optim.lr == "auto":
        rate = learning_rate(config.finetune.method, base.config().n_embd, bool(rows.train.pairs))
        optim = optim.model_copy(update={"lr": rate})
    epoch = rows.source(config)
    steps = Budget.of(train, epoch.sequences_per_epoch, epoch.tokens_per_sequence).steps
    if steps is not None and "warmup_steps" not in optim.model_fields_set:
        warmup = min(optim.warmup_steps, math.ceil(WARMUP_SHARE * steps))
        optim = optim.model_copy(update={"warmup_steps": warmup})
    return config.model_copy(update={"train": train, "optim": optim})


def finetuning(config: FinetuneConfig, base: SavedModel, rows: TaskRows, model: GPT) -> Task:
    """Answer prompts as the examples do, starting from the base model's weights."""
    section, tokenizer = config.finetune, rows.chat.tokenizer
    val_rows = rows.validation_rows(config.eval.max_tokens)
    rows_per_sequence = 2 if rows.train.pairs else 1
    return Task(
        model=base.config(),
        build_model=lambda: model,
        tokenizer=tokenizer,
        batches=lambda micro_batch_size: Batches(
            rows.source(config),
            Order(config.train.sequences_per_step, max(1, micro_batch_size // rows_per_sequence))),
        validation=lambda micro_batch_size: padded_batches(val_rows, micro_batch_size,
                                                           rows.marks_prompts),
        identity={"finetune.from": base.weight_hash(), **rows.identity(config)},
        evaluate_first=True,
        objective=PreferenceObjective(config.preference) if rows.train.pairs else None,
        best_by="preference_loss" if rows.train.pairs else None,
        before_learning=(lambda model, machine: rows.score(
            model, machine, machine.measuring(config.eval.dtype))) if rows.train.pairs else None,
        measure=lambda lm: figures(lm.model, lm.answers, rows, val_rows, config, lm.machine),
        prompt_tokens=rows.prompt,
        keep_base=None if section.method == "full" else lambda folder: checkpoint.save_model(
            folder, base.model(), tokenizer, imported_from=str(base.path)))
