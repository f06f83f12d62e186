"""What a model does with prompts that it has not seen, beyond the loss of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gpt.config import FinetuneConfig
from gpt.evaluate import token_losses
from gpt.finetuning.chat import Chat
from gpt.finetuning.preferences import preference_figures
from gpt.finetuning.rows import Row, side_by_side
from gpt.finetuning.task import TaskRows
from gpt.model import GPT
from gpt.runtime import Machine

# (prompts of token ids, most tokens to write for each) -> (text, whether it came to an end) each
Answers = Callable[[Sequence[Sequence[int]], Sequence[int]], list[tuple[str, bool]]]
ROOM = 16  # tokens that an answer may be longer than the one that was expected


def figures(model: GPT, answers: Answers, task: TaskRows, val_rows: Sequence[Row],
            config: FinetuneConfig, machine: Machine) -> dict[str, float]:
    """All that the validation data say besides the loss."""
    found = answer_figures(val_rows, config.finetune.answers, answers)
    if task.labels:
        found["label_accuracy"] = label_accuracy(model, val_rows, task.labels, task.chat, machine)
    if task.val.pairs:
        pairs = task.val.pairs[:len(val_rows)]  # as many as validation rows are scored
        found |= preference_figures(model, pairs, config.preference, machine, task.marks_prompts)
    return found


def answer_figures(rows: Sequence[Row], limit: int, answers: Answers) -> dict[str, float]:
    """Of the answers to the first `limit` prompts: the shares that are exact, and that end.

    exact_match: the same text, but for blanks around it. format_rate: the stop token was reached.
    Empty where there is nothing to answer.
    """
    asked = [row for row in rows
             if row.example.prompt and row.example.messages[-1].learned][:limit]
    if not asked:
        return {}
    starts = [row.answer_start for row in asked]
    prompts = [row.tokens[:start].tolist() for row, start in zip(asked, starts, strict=True)]
    most = [len(row) + 1 - start + ROOM for row, start in zip(asked, starts, strict=True)]
    written = answers(prompts, most)
    exact = sum(ends and text.strip() == row.example.completion.strip()
                for row, (text, ends) in zip(asked, written, strict=True))
    return {"exact_match": exact / len(asked),
            "format_rate": sum(ends for _, ends in written) / len(asked)}


@torch.inference_mode()
def label_accuracy(model: GPT, rows: Sequence[Row], labels: Sequence[str], chat: Chat,
                   machine: Machine) -> float:
    """The share of rows whose label is the likeliest of all, each with its stop token."""
    answers = [np.array([*chat.tokenizer.encode_behind(label), chat.stop_token])
               for label in labels]
    right = 0
    for row in rows:
        candidates = with_answers(row, answers, model.config.block_size)
        batch = side_by_side([[candidate] for candidate in candidates],
                             marks_prompts=chat.format.prefix == "bidirectional").on(machine)
        with machine.autocast():
            losses = token_losses(model, batch)
        right += labels[int(losses.sum(dim=1).argmin())] == row.example.label
    return right / len(rows)


def with_answers(row: Row, answers: Sequence[np.ndarray], block_size: int) -> list[Row]:
    """A row with other answers behind its prompt, of which all see as much as fits with each."""
    room = block_size + 1 - max(map(len, answers))
    prompt = row.tokens[:row.answer_start][-room:]
    unlearned = np.zeros(len(prompt), dtype=bool)
    return [Row(np.concatenate([prompt, answer]),
                np.concatenate([unlearned, np.ones(len(answer), dtype=bool)]), row.example)
            for answer in answers]
