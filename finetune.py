"""Fine-tune a trained run on a task.

usage: python finetune.py configs/NAME.yaml [section.field=value ...]

The task is a JSONL file of {"prompt": ..., "completion": ...}; the loss counts completions and the
stop token that ends each. The result is a run folder like any other.
"""

from __future__ import annotations

from pathlib import Path

from gpt.batches import Batches, Order, Shuffled
from gpt.cli import parse_command_line
from gpt.config import FinetuneConfig, FinetuneSection
from gpt.errors import UserError, run_command
from gpt.files import sha256_of
from gpt.finetuning import (
    Record,
    Row,
    Rows,
    encode_records,
    first_rows,
    hold_out,
    padded_batches,
    plain_template,
    read_records,
)
from gpt.runtime import launch
from gpt.saved_model import SavedModel, find_model
from gpt.tokenizer import Tokenizer
from gpt.training import Task, train_task


def main(argv: list[str]) -> None:
    """Parse, build, train."""
    command = parse_command_line(FinetuneConfig, argv, __doc__ or "")
    config = settled(command.config)
    base = find_model(config.finetune.base)
    with launch(config.run) as machine:
        train_task(finetuning(config, base), config, machine, "--dry-run" in command.flags)


def settled(config: FinetuneConfig) -> FinetuneConfig:
    """What "auto" is in fine-tuning: AdamW, and 32 rows a step.

    Muon moves all directions of a matrix alike, also those that pretraining settled.
    """
    optim, train = config.optim, config.train
    if optim.name == "auto":
        optim = optim.model_copy(update={"name": "adamw"})
    if train.batch_size == "auto":
        train = train.model_copy(update={"batch_size": 32})
    return config.model_copy(update={"optim": optim, "train": train})


def finetuning(config: FinetuneConfig, base: SavedModel) -> Task:
    """Continue prompts as the records do, starting from the base model's weights."""
    model_config, tokenizer = base.config(), base.tokenizer()
    tokenizer.chat_template = plain_template(tokenizer)  # of the rows below
    train_records, val_records = load_splits(config.finetune, config.run.seed)
    train_rows = _rows("training", train_records, tokenizer, model_config.block_size)
    val_rows = _rows("validation", val_records, tokenizer, model_config.block_size)
    return Task(
        model=model_config,
        build_model=base.model,
        tokenizer=tokenizer,
        batches=lambda micro_batch_size: Batches(
            Shuffled(Rows(train_rows), config.run.seed),
            Order(config.train.sequences_per_step, micro_batch_size)),
        validation=lambda micro_batch_size: list(padded_batches(
            first_rows(val_rows, config.eval.max_tokens), micro_batch_size)),
        identity={"finetune.from": base.weight_hash(),
                  "finetune.data": sha256_of(Path(config.finetune.data)),
                  "finetune.val_fraction": config.finetune.val_fraction,
                  "finetune.val_data": config.finetune.val_data
                  and sha256_of(Path(config.finetune.val_data))},
        evaluate_first=True)


def load_splits(section: FinetuneSection, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and validation records."""
    records = read_records(Path(section.data))
    if section.val_data is not None:
        return records, read_records(Path(section.val_data))
    train, val = hold_out(records, section.val_fraction or 0.1, seed)
    if not train or not val:
        raise UserError(f"{section.data} has {len(records)} records, too few to hold out "
                        f"{section.val_fraction or 0.1:.0%}; give finetune.val_data, or more data")
    return train, val


def _rows(split: str, records: list[Record], tokenizer: Tokenizer, block_size: int) -> list[Row]:
    rows, too_long = encode_records(records, tokenizer, block_size)
    left_out = f", {too_long:,} longer than the context left out" if too_long else ""
    print(f"{split}: {len(rows):,} records{left_out}")
    return rows


if __name__ == "__main__":
    run_command(main)
