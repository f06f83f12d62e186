"""Fine-tune a trained run on a task.

usage: python finetune.py configs/NAME.yaml [section.field=value ...] [--preview N]

The task is a file of prompts and completions, conversations, labelled texts or plain texts; the
loss counts answers and the stop token that ends each. The result is a run folder like any other.
--preview N prints N examples as the model will read them, and what is learned of each, and stops.
"""

from __future__ import annotations

import math
import sys

from gpt.batches import Batches, Order
from gpt.configuration import FinetuneConfig, parse_command_line
from gpt.errors import UserError, run_command
from gpt.finetuning import (
    PreferenceObjective,
    TaskRows,
    choose_what_learns,
    figures,
    learning_rate,
    padded_batches,
    preview,
    sequences_per_step,
)
from gpt.machine.device import launch
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.runs.saved_model import SavedModel, find_model
from gpt.training.budget import Budget
from gpt.training.task import Task, train_task

WARMUP_SHARE = 0.1  # of a run's steps, at most


def main(argv: list[str]) -> None:
    """Parse, build, train."""
    argv, previewed = take_preview(argv)
    command = parse_command_line(FinetuneConfig, argv, __doc__ or "")
    config = settled(command.config)
    base = find_model(config.finetune.base)
    rows = TaskRows.load(config, base.tokenizer(), base.config().block_size)
    print("\n".join(rows.opening_lines()))
    if previewed is not None:
        print(preview(rows, previewed, colour=sys.stdout.isatty()))
        return
    config, dry_run = with_defaults(config, rows, base), "--dry-run" in command.flags
    model = choose_what_learns(base.model(), config, rows.chat.stop_token)
    with launch(config.run) as machine:
        train_task(finetuning(config, base, rows, model), config, machine, dry_run)


def take_preview(argv: list[str]) -> tuple[list[str], int | None]:
    """(the other arguments, N of --preview N)"""
    words = [part for word in argv for part in
             (word.split("=", 1) if word.startswith("--preview=") else [word])]
    if "--preview" not in words:
        return argv, None
    place = words.index("--preview")
    number = "".join(words[place + 1:place + 2])
    if not number.isdecimal() or not int(number):
        raise UserError("--preview needs a number of examples: --preview 5")
    return [*words[:place], *words[place + 2:]], int(number)


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
        before_learning=rows.score if rows.train.pairs else None,
        measure=lambda lm: figures(lm.model, lm.answers, rows, val_rows, config, lm.machine),
        prompt_tokens=rows.prompt,
        keep_base=None if section.method == "full" else lambda folder: checkpoint.save_model(
            folder, base.model(), tokenizer, imported_from=str(base.path)))


if __name__ == "__main__":
    run_command(main)
