"""Pretraining as a task: predict every next token of a dataset."""

from __future__ import annotations

import torch

from gpt.batches import (
    Batches,
    DocumentRows,
    Endless,
    EvaluationWindows,
    Mixture,
    Order,
    Sequences,
    Shuffled,
    TokenizedText,
    Windows,
)
from gpt.configuration import ModelConfig, PretrainConfig
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.model import GPT, flops_per_token
from gpt.runs.folder import started_with
from gpt.shards import Dataset, changed_file
from gpt.training.choices import choose_batch_size
from gpt.training.task import Task


def with_vocabulary(config: PretrainConfig, dataset: Dataset) -> PretrainConfig:
    """The configuration with the tokenizer's vocabulary size, where it gives none."""
    size, given = dataset.tokenizer.vocab_size, config.model.vocab_size
    if given is not None and given < size:
        raise UserError(f"model.vocab_size={given} is smaller than the vocabulary of "
                        f"{dataset.folder} ({size}); leave it out, or raise it")
    model = ModelConfig(**{**config.model.model_dump(), "vocab_size": given or size})
    return config.model_copy(update={"model": model})


def with_batch_size(config: PretrainConfig, dataset: Dataset, machine: Machine) -> PretrainConfig:
    """The configuration with train.batch_size as a number: auto is decided once for a run."""
    if config.train.batch_size != "auto":
        return config
    size = started_with(config.run, "train.batch_size")
    if size is None:
        with torch.device("meta"):
            flops = flops_per_token(GPT(config.model))
        size = choose_batch_size(config.train, config.model, flops, len(dataset.train), machine)
    train = config.train.model_copy(update={"batch_size": size})
    return config.model_copy(update={"train": train})


def pretraining(config: PretrainConfig, dataset: Dataset) -> Task:
    """Predict every next token of the dataset's training split."""
    source = training_source(config, dataset)
    return Task(
        model=config.model,
        build_model=lambda: GPT(config.model),
        tokenizer=dataset.tokenizer,
        batches=lambda portion: Batches(
            source, Order(config.train.sequences_per_step, portion.sequences, portion.rank,
                          portion.ranks)),
        validation=lambda tokens: EvaluationWindows(
            TokenizedText.validation(dataset), config.model.block_size,
            tokens // config.model.block_size,
            config.eval.max_tokens, config.data.isolate_documents),
        identity={"data": dataset.manifest.fingerprint, "data.packing": config.data.packing,
                  "data.isolate_documents": config.data.isolate_documents},
        loader_workers=config.data.loader_workers,
        look=lambda: changed_file(dataset.folder))


def training_source(config: PretrainConfig, dataset: Dataset) -> Endless:
    """What training reads at each index: the training split, or the mixture of its sources."""
    seed, mixture = config.run.seed, TokenizedText.mixture(dataset)
    if mixture:
        sources = [sequences_of(text, config) for text in mixture]
        return Mixture(sources, list(mixture.values()), seed)
    return Shuffled(sequences_of(TokenizedText.training(dataset), config), seed)


def sequences_of(text: TokenizedText, config: PretrainConfig) -> Sequences:
    """A text cut as data.packing says."""
    block_size, isolate = config.model.block_size, config.data.isolate_documents
    if config.data.packing == "windows":
        return Windows(text, block_size, isolate)
    rows = DocumentRows(text, block_size, isolate)
    print(f"{text.name}: {len(rows):,} rows of documents, {rows.padding:.2%} padding")
    return rows
