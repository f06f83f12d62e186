"""python -m gpt evaluate: loss and bits per byte of a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.batches import EvaluationWindows, TokenizedText
from gpt.configuration import WAYS, find_places
from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.finetuning import (
    answer_figures,
    chat_for,
    encode_examples,
    label_accuracy,
    labels_of,
    padded_batches,
    read_task,
    refuse_useless,
    spoken,
    written,
)
from gpt.language_model import LanguageModel, Over, opened
from gpt.machine.device import DTYPES
from gpt.machine.ranks import Ranks, joined
from gpt.runs.saved_model import find_model
from gpt.shards import Dataset, TokenStream, dataset_folder, is_dataset
from gpt.training.evaluate import evaluate, in_format

BATCH_TOKENS = 8192  # scored at once
LONGEST_WINDOW = 8192  # imported models may read far more than fits into memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, and a text of one's own."""
    parser.add_argument("run", metavar="RUN",
                        help="run folder, checkpoint, Hugging Face folder or GGUF file")
    parser.add_argument("--text", metavar="FILE",
                        help="score this text rather than the run's validation split")
    parser.add_argument("--data", metavar="FILE",
                        help="answer this task's prompts, in the model's chat format: examples as "
                             "finetune.py reads them")
    parser.add_argument("--dtype", choices=DTYPES,
                        help="number format of products; default: as the run's own evaluations "
                             "(eval.dtype), which is float32 unless it says otherwise")
    parser.add_argument("--parallel", default="auto", choices=WAYS,
                        help="how the processes of a launcher hold the model: auto, replicate, "
                             "shard or tensor (docs/scale.md)")


def run(options: argparse.Namespace) -> None:
    """Print a model's score, and which weights it belongs to."""
    with joined("auto") as ranks:
        _run(options, ranks)


def _run(options: argparse.Namespace, ranks: Ranks) -> None:
    saved = find_model(options.run)
    config = _config_of(saved.path)
    dtype = options.dtype or config.get("eval", {}).get("dtype", "float32")
    if dtype not in DTYPES:
        raise UserError(f"the run's config.yaml asks for eval.dtype={dtype}; give --dtype, one of "
                        f"{', '.join(DTYPES)}")
    over = Over(ranks, options.parallel, copies=True)
    lm = opened(saved, dtype="float32", over=over)  # of the weights, as in training
    lm = LanguageModel(lm.model, lm.tokenizer, lm.machine.measuring(dtype))
    if options.data:
        if options.text:
            raise UserError("give --text or --data, not both")
        print(f"{saved.path}: weights {saved.weight_hash()[:16]}")
        return print("\n".join(_task_lines(lm, Path(options.data), in_format(dtype))))
    data = config.get("data", {})
    tokens = (_text(lm, Path(options.text)) if options.text
              else _validation_split(lm, saved.path, data))
    length = min(lm.block_size, LONGEST_WINDOW)
    if length < lm.block_size:
        print(f"(scored in windows of {length:,} tokens; the model could read "
              f"{lm.block_size:,})", file=sys.stderr)
    windows = EvaluationWindows(tokens, length, BATCH_TOKENS // length,
                                isolate=data.get("isolate_documents", False))
    score = evaluate(lm.model, windows, torch.from_numpy(lm.tokenizer.byte_lengths()), lm.machine)
    print(f"{saved.path}: weights {saved.weight_hash()[:16]}")
    print(f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte, over "
          f"{score.tokens:,} tokens{in_format(dtype)}")


def _task_lines(lm: LanguageModel, file: Path, beside: str) -> Iterator[str]:
    """What a model makes of a task: the loss of its answers, and its own.

    beside: what is said beside figures.
    """
    data = read_task(file)
    if data.preferences:
        raise UserError(f"{file} holds preferences, which are scored against the model that "
                        "training started from; finetune.py does that")
    chat = chat_for("auto", data, lm.tokenizer)
    data, _ = written(spoken(data, chat), lm.tokenizer, "error")
    lm = lm.with_tokenizer(chat.own_tokenizer())  # which ends where answers do
    found = encode_examples(data.examples, chat, lm.block_size,
                            text_length=min(lm.block_size, LONGEST_WINDOW))
    refuse_useless(found, str(file), f"the model's context of {lm.block_size} tokens",
                   max_long_share=1.0)
    batches = padded_batches(found.rows, BATCH_TOKENS, chat.reads_both_ways)
    score = evaluate(lm.model, batches, torch.from_numpy(lm.tokenizer.byte_lengths()), lm.machine)
    yield (f"{len(found.rows):,} examples ({data.format}; chat format: {chat.name}), "
           f"{len(found.dropped):,} longer than the context left out")
    yield from chat.notes
    yield (f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte, over "
           f"{score.tokens:,} tokens of answers{beside}")
    figures = answer_figures(found.rows, len(found.rows), lm.answers, lm.tokenizer).figures
    if labels := sorted(labels_of(data.examples)):
        figures["label_accuracy"] = label_accuracy(lm.model, found.rows, labels, chat, lm.machine)
    for name, value in figures.items():
        yield f"{name.replace('_', ' ')} {value:.3f}"


def _config_of(path: Path) -> dict[str, Any]:
    """The configuration of a checkpoint's run; empty if that is not known."""
    config = path.parent.parent / "config.yaml"
    in_a_run = path.parent.name == "checkpoints" and config.is_file()
    values: dict[str, Any] = load_file(config).values if in_a_run else {}
    if in_a_run:
        find_places(values, config.parent)
    return values


def _text(lm: LanguageModel, file: Path) -> TokenizedText:
    try:
        tokens = lm.tokenizer.encode_bytes(file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if not tokens:
        raise UserError(f"{file} is empty: there is nothing to score")
    begin = lm.tokenizer.begin_of_text
    before = lm.tokenizer.end_of_text if begin is None else begin
    return TokenizedText(TokenStream([np.asarray(tokens)]), lm.tokenizer.vocab_size, before,
                         str(file))


def _validation_split(lm: LanguageModel, path: Path, data: dict[str, Any]) -> TokenizedText:
    name = data.get("dataset", "")
    folder = dataset_folder(name)
    if not is_dataset(folder):
        raise UserError(f"{path}: its dataset ({name or 'none'}) is not here; give --text FILE")
    dataset = Dataset(folder)
    if dataset.tokenizer.fingerprint != lm.tokenizer.fingerprint:
        raise UserError(f"{folder} was made with another tokenizer than {path}; give --text FILE")
    return TokenizedText.validation(dataset)
