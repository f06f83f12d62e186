"""What a model does with prompts that it has not seen, beyond the loss of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt.chat import AnyChat
from gpt.configuration import FinetuneConfig
from gpt.finetuning.preferences import preference_figures
from gpt.finetuning.rows import Row
from gpt.finetuning.task_rows import TaskRows
from gpt.machine.device import Machine
from gpt.model import GPT, KVCache
from gpt.tokenizer import Tokenizer
from gpt.training.evaluate import Measured

# (prompts of token ids, most tokens to write for each) -> (text, whether it came to an end) each
Answers = Callable[[Sequence[Sequence[int]], Sequence[int]], list[tuple[str, bool]]]
SHOWN = 2  # answers of each evaluation, in the log
TOGETHER = 32  # labels that are scored side by side
ROOM = 16  # tokens that an answer may be longer than the one that was expected


def figures(model: GPT, answers: Answers, task: TaskRows, val_rows: Sequence[Row],
            config: FinetuneConfig, machine: Machine) -> Measured:
    """All that the validation data say besides the loss."""
    found, shown = answer_figures(val_rows, config.finetune.answers, answers, task.chat.tokenizer)
    if task.labels:
        found["label_accuracy"] = label_accuracy(model, val_rows, task.labels, task.chat, machine)
    if task.val.pairs:
        pairs = task.val.pairs[:len(val_rows)]  # as many as validation rows are scored
        found |= preference_figures(model, pairs, config.preference, machine, task.marks_prompts)
    return Measured(found, shown)


def answer_figures(rows: Sequence[Row], limit: int, answers: Answers,
                   tokenizer: Tokenizer) -> Measured:
    """Of the answers to the first `limit` prompts: the shares that are exact, and that end; and
    some of them to look at.

    exact_match: the same text, but for blanks around it. format_rate: the stop token was reached.
    Empty where there is nothing to answer.
    """
    asked = [row for row in rows if len(row.messages) > 1 and row.messages[-1].learned][:limit]
    if not asked:
        return Measured({}, [])
    starts = [row.answer_start for row in asked]
    prompts = [row.tokens[:start].tolist() for row, start in zip(asked, starts, strict=True)]
    most = [len(row) + 1 - start + ROOM for row, start in zip(asked, starts, strict=True)]
    written = answers(prompts, most)
    exact = sum(ends and text.strip() == row.answer(tokenizer).strip()
                for row, (text, ends) in zip(asked, written, strict=True))
    shown = [("\n".join(message.content for message in row.messages[:-1]), text)
             for row, (text, _) in zip(asked[:SHOWN], written[:SHOWN], strict=True)]
    return Measured({"exact_match": exact / len(asked),
                     "format_rate": sum(ends for _, ends in written) / len(asked)}, shown)


@torch.inference_mode()
def label_accuracy(model: GPT, rows: Sequence[Row], labels: Sequence[str], chat: AnyChat,
                   machine: Machine) -> float:
    """The share of rows whose label is the likeliest of all, each with its stop token."""
    answers = list(map(chat.answer, labels))
    longest, block_size = max(map(len, answers)), model.config.block_size
    room = min(block_size, max(row.answer_start for row in rows) + longest)
    cache = model.new_cache(min(TOGETHER, len(labels)), room, machine.device, machine.dtype)

    def is_right(row: Row) -> bool:
        machine.stop.raise_if_asked()
        # All see as much of the prompt as fits before the longest of them.
        prompt = row.tokens[:row.answer_start][-(block_size + 1 - longest):]
        scores = label_scores(model, prompt, answers, cache, machine, chat.reads_both_ways)
        return labels[int(np.argmax(scores))] == row.example.label

    return sum(machine.replicas.dealt_out(rows, lambda share: list(map(is_right, share)))
               ) / len(rows)


def label_scores(model: GPT, prompt: np.ndarray, answers: Sequence[Sequence[int]], cache: KVCache,
                 machine: Machine, both_ways: bool = False) -> list[float]:
    """Log-probability of each of several answers behind a prompt, which is read once.

    cache: with room for prompt and answers, as many rows as answers are to be read at a time.
    both_ways: the tokens of the prompt read each other in both directions.
    """
    def logprobs(x: Tensor) -> Tensor:
        return model.logits(x).float().log_softmax(dim=-1)

    read, scores = torch.tensor(prompt, device=machine.device).unsqueeze(0), list[float]()
    marks = torch.ones_like(read, dtype=torch.bool) if both_ways else None
    cache.lengths[:] = 0
    with machine.autocast():
        first = logprobs(model.hidden(read, cache.rows(0, 1), prompts=marks)[:, -1])[0]
        for row in range(1, cache.batch_size):
            cache.copy_row(0, row)
        for start in range(0, len(answers), cache.batch_size):
            part = answers[start:start + cache.batch_size]
            cache.lengths[:] = len(prompt)
            width = max(map(len, part))
            padded = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in part],
                                  device=machine.device)
            later = logprobs(model.hidden(padded[:, :-1], cache.rows(0, len(part))))
            later = later.gather(2, padded[:, 1:].unsqueeze(2)).squeeze(2)
            scores += [float(first[answer[0]] + one[:len(answer) - 1].sum())
                       for answer, one in zip(part, later, strict=True)]
    return scores
