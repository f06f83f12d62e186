"""Pretrain a GPT on raw text.

usage: python train.py configs/NAME.yaml [section.field=value ...]

Running the same command again continues the run, to the same bits as if it had never stopped.
"""

from __future__ import annotations

from data.prepare import open_or_prepare
from gpt.batches import EvaluationWindows, Windows
from gpt.cli import parse_command_line
from gpt.config import ModelConfig, PretrainConfig
from gpt.errors import UserError, run_command
from gpt.model import GPT
from gpt.runtime import launch, training_machine
from gpt.shards import Dataset
from gpt.training import Task, train_task


def main(argv: list[str]) -> None:
    """Parse, build, train."""
    command = parse_command_line(PretrainConfig, argv, __doc__ or "")
    training_machine(command.config.run)  # refuse before a corpus is prepared
    dataset = open_or_prepare(command.config.data.dataset)
    config = with_vocabulary(command.config, dataset)
    with launch(config.run) as machine:
        train_task(pretraining(config, dataset), config, machine, "--dry-run" in command.flags)


def with_vocabulary(config: PretrainConfig, dataset: Dataset) -> PretrainConfig:
    """The configuration with the tokenizer's vocabulary size, where it gives none."""
    size, given = dataset.tokenizer.vocab_size, config.model.vocab_size
    if given is not None and given < size:
        raise UserError(f"model.vocab_size={given} is smaller than the vocabulary of "
                        f"{dataset.folder} ({size}); leave it out, or raise it")
    model = ModelConfig(**{**config.model.model_dump(), "vocab_size": given or size})
    return config.model_copy(update={"model": model})


def pretraining(config: PretrainConfig, dataset: Dataset) -> Task:
    """Predict every next token of the dataset's training split."""
    block_size = config.model.block_size
    return Task(
        model=config.model,
        build_model=lambda: GPT(config.model),
        tokenizer=dataset.tokenizer,
        batches=lambda micro_batch_size: Windows(
            dataset.train, block_size, config.train.batch_size, micro_batch_size, config.run.seed),
        validation=lambda micro_batch_size: EvaluationWindows(
            dataset.val, dataset.tokenizer.end_of_text, block_size, micro_batch_size,
            config.eval.max_tokens),
        identity={"data": dataset.manifest.fingerprint})


if __name__ == "__main__":
    run_command(main)
