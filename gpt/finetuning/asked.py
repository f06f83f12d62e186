"""python -m gpt evaluate --data: what a model makes of a file of task data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from gpt.errors import UserError
from gpt.evaluation import BATCH_TOKENS, Result, in_format, questions, window_length
from gpt.files import sha256_of
from gpt.finetuning.bad_text import written
from gpt.finetuning.formats import read_task
from gpt.finetuning.measures import answer_figures, label_accuracy
from gpt.finetuning.rows import encode_examples, padded_batches, refuse_useless
from gpt.finetuning.splits import labels_of
from gpt.finetuning.task_rows import chat_for
from gpt.finetuning.tool_texts import spoken
from gpt.language_model import LanguageModel
from gpt.training.evaluate import evaluate


def task_result(lm: LanguageModel, file: Path, dtype: str) -> Result:
    """Of examples as finetune.py reads them, or of questions with choices."""
    asked = questions.is_questions(file)
    lines, values = (_questions if asked else _examples)(lm, file, in_format(dtype))
    sha256 = sha256_of(file)
    return Result([*lines, f"of {file}, SHA-256 {sha256[:16]}"],
                  {"data": str(file), "data_sha256": sha256, "dtype": dtype, **values})


def _questions(lm: LanguageModel, file: Path, beside: str) -> tuple[list[str], dict[str, Any]]:
    found = questions.ask(lm, questions.read_questions(file))
    sure = "" if found.accuracy_interval is None else f" ({found.accuracy_interval})"
    return [f"{found.questions:,} questions: the right choice is the likeliest per byte in "
            f"{found.accuracy:.4f} of them{sure}, the likeliest in all in "
            f"{found.accuracy_in_all:.4f}; by chance in {found.chance:.4f}{beside}"
            ], dataclasses.asdict(found)


def _examples(lm: LanguageModel, file: Path, beside: str) -> tuple[list[str], dict[str, Any]]:
    """The loss of a task's answers, and the model's own.

    beside: what is said beside figures.
    """
    data = read_task(file)
    if data.preferences:
        raise UserError(f"{file} holds preferences, which are scored against the model that "
                        "training started from; finetune.py does that")
    chat = chat_for("auto", data, lm.tokenizer)
    data, _ = written(spoken(data, chat), lm.tokenizer, "error")
    lm = lm.with_tokenizer(chat.own_tokenizer())  # which ends where answers do
    found = encode_examples(data.examples, chat, lm.block_size, text_length=window_length(lm))
    refuse_useless(found, str(file), f"the model's context of {lm.block_size} tokens",
                   max_long_share=1.0)
    batches = padded_batches(found.rows, BATCH_TOKENS, chat.reads_both_ways)
    score = evaluate(lm.model, batches, torch.from_numpy(lm.tokenizer.byte_lengths()), lm.machine)
    figures = answer_figures(found.rows, len(found.rows), lm.answers, lm.tokenizer).figures
    if labels := sorted(labels_of(data.examples)):
        figures["label_accuracy"] = label_accuracy(lm.model, found.rows, labels, chat, lm.machine)
    lines = [f"{len(found.rows):,} examples ({data.format}; chat format: {chat.name}), "
             f"{len(found.dropped):,} longer than the context left out", *chat.notes,
             f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte, over "
             f"{score.tokens:,} tokens of answers{beside}",
             *(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())]
    return lines, {"examples": len(found.rows), "left_out": len(found.dropped),
                   "loss": score.loss, "bits_per_byte": score.bits_per_byte,
                   "tokens": score.tokens, **figures}
