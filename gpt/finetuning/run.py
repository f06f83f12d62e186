"""A fine-tuning run, put together: what "auto" is here, and the examples as a task."""

from __future__ import annotations

import math
from pathlib import Path

from gpt.batches import Batches, Order
from gpt.configuration import FinetuneConfig
from gpt.errors import UserError
from gpt.finetuning.effort import Effort, closing_lines, with_effort
from gpt.finetuning.measures import figures
from gpt.finetuning.method import learning_rate
from gpt.finetuning.preferences import PreferenceObjective
from gpt.finetuning.rows import padded_batches
from gpt.finetuning.task_rows import TaskRows
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.runs.saved_model import SavedModel
from gpt.shards import changed_file
from gpt.training.budget import Budget
from gpt.training.choices import Portion
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


def with_defaults(config: FinetuneConfig, rows: TaskRows, base: SavedModel) -> Effort:
    """Numbers for what is left open: how long and in what steps, optim.lr; a warm-up that suits
    short runs."""
    config, line = with_effort(config, rows)
    train, optim = config.train, config.optim
    if optim.lr == "auto":
        rate = learning_rate(config.finetune.method, base.config().n_embd, bool(rows.train.pairs))
        optim = optim.model_copy(update={"lr": rate})
    epoch = rows.source(config)
    steps = Budget.of(train, epoch.sequences_per_epoch, epoch.tokens_per_sequence).steps
    if steps is not None and "warmup_steps" not in optim.model_fields_set:
        warmup = min(optim.warmup_steps, math.ceil(WARMUP_SHARE * steps))
        optim = optim.model_copy(update={"warmup_steps": warmup})
    return Effort(config.model_copy(update={"optim": optim}), line)


def finetuning(config: FinetuneConfig, base: SavedModel, rows: TaskRows, model: GPT) -> Task:
    """Answer prompts as the examples do, starting from the base model's weights."""
    section, tokenizer = config.finetune, rows.chat.tokenizer
    if rows.train.pairs and config.parallel.context > 1:
        raise UserError("parallel.context cuts sequences in parts, and preferences compare whole "
                        "answers; use parallel.shard or parallel.tensor for them")
    val_rows = rows.validation_rows(config.eval.max_tokens)
    rows_per_sequence = 2 if rows.train.pairs else 1

    def batches(portion: Portion) -> Batches:
        order = Order(config.train.sequences_per_step,
                      max(1, portion.sequences // rows_per_sequence), portion.rank,
                      portion.ranks)
        return Batches(rows.source(config), order,
                       portion.tokens and portion.tokens // rows_per_sequence)

    return Task(
        model=base.config(),
        build_model=lambda: model,
        tokenizer=tokenizer,
        batches=batches,
        validation=lambda tokens: padded_batches(val_rows, tokens, rows.marks_prompts),
        longest=rows.longest(section),
        identity={"finetune.from": base.weight_hash(), **rows.identity(config)},
        evaluate_first=True,
        objective=PreferenceObjective(config.preference) if rows.train.pairs else None,
        best_by="preference_loss" if rows.train.pairs else None,
        before_learning=(lambda model, machine: rows.score(
            model, machine, machine.measuring(config.eval.dtype))) if rows.train.pairs else None,
        measure=lambda lm: figures(lm.model, lm.answers, rows, val_rows, config, lm.machine),
        opening_lines=rows.opening_lines,
        closing_lines=lambda folder: closing_lines(
            folder, config, "val_preference_loss" if rows.train.pairs else "val_loss"),
        prompt_tokens=rows.prompt,
        look=lambda: section.pretrain_data and changed_file(Path(section.pretrain_data)),
        keep_base=None if section.method == "full" else lambda folder: checkpoint.save_model(
            folder, base.model(), tokenizer, imported_from=str(base.path)))
