"""How long to learn from so many examples, in what steps; and whether that was enough.

A few dozen examples are seen many times, in small steps, thousands of them once. What validation
says ends it earlier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpt.configuration import BUDGETS, FinetuneConfig
from gpt.finetuning.task_rows import TaskRows, sequences_per_step
from gpt.runs.folder import recorded, started_with
from gpt.training.budget import Budget

SEEN = 3_000  # examples, from which on each is seen once
MOST_EPOCHS = 10
UPDATES = 100  # for which steps are made smaller
FEWEST_EXAMPLES, EXAMPLES = 4, 32  # of a step
PATIENCE = 3  # evaluations
FALLS = 0.02  # of the loss from one evaluation to the last: more is still to be had
FALLS_IN_TRAINING = 0.05  # from the third quarter of the steps to the last one


class Effort(NamedTuple):
    """A configuration in which it is settled, and a line that says what was chosen and why."""

    config: FinetuneConfig
    line: str | None


def with_effort(config: FinetuneConfig, rows: TaskRows) -> Effort:
    """Numbers for the budget and the batch size, where they are left open.

    A run that is there goes on with those that it began with.
    """
    examples, train = len(rows.train.rows.rows), config.train
    is_open = all(getattr(train, name) is None for name in BUDGETS)
    before = recorded(Path(config.run.out_dir) / config.run.name).get("train", {})
    if is_open:
        epochs = before.get("epochs") or (1.0 if before else float(epochs_for(examples)))
        train = train.model_copy(update={"epochs": epochs})
    sequences = rows.sequences(config.finetune.packing)
    if train.batch_size == "auto":
        size = started_with(config.run, "train.batch_size") or sequences_per_step(
            examples_per_step(examples, train.epochs), examples, len(sequences))
        train = train.model_copy(update={"batch_size": size})
    config = config.model_copy(update={"train": train})
    if not is_open:
        return Effort(config, None)
    source = rows.source(config)  # with what is mixed in
    per_epoch = -(-source.sequences_per_epoch // train.sequences_per_step)
    steps = Budget.of(train, source.sequences_per_epoch, source.tokens_per_sequence).steps
    line = (f"{examples:,} examples: train.epochs={train.epochs:g} and train.batch_size="
            f"{train.batch_size}, {steps:,} steps in all")
    scored, is_seen_again = config.eval.model_fields_set, (train.epochs or 1) > 1
    if is_seen_again:
        line += " (few examples are seen several times, in smaller steps)"
    if is_seen_again and rows.val.rows.rows and "every_steps" not in scored:
        patience = config.eval.patience if "patience" in scored else PATIENCE
        config = config.model_copy(update={"eval": config.eval.model_copy(
            update={"every_steps": per_epoch, "patience": patience})})
        line += f"; validated after each epoch, to end after eval.patience={patience} without gain"
    return Effort(config, line)


def epochs_for(examples: int) -> int:
    """How often each example is seen."""
    return max(1, min(MOST_EPOCHS, round(SEEN / examples)))


def examples_per_step(examples: int, epochs: float | None) -> int:
    """So few that there are enough updates; as many as usual where the budget is no epochs."""
    size = FEWEST_EXAMPLES
    while size < EXAMPLES and (epochs is None or examples * epochs / (2 * size) >= UPDATES):
        size *= 2
    return size


def closing_lines(folder: Path, config: FinetuneConfig, figure: str) -> Iterator[str]:
    """A word on a run that ended while its loss was falling, and the option that goes on.

    figure: of the evaluations, by which checkpoints are compared.
    """
    train = config.train
    option, budget = next((name, value) for name in BUDGETS
                          if (value := getattr(train, name)) is not None)
    events = _events(folder / "metrics.jsonl")
    scores, losses = (  # what was not finite is null there
        {event["step"]: event[name] for event in events if event.get(name) is not None}
        for name in (figure, "loss"))
    if not losses:
        return
    said = _falls_in_evaluations(scores) if len(scores) > 2 else _falls_in_training(losses)
    if said:
        more = f"{2 * budget:g}" if isinstance(budget, float) else str(2 * budget)
        yield f"{said}: train.{option}={more}, with the same command, goes on learning"


def _falls_in_evaluations(scores: dict[int, float]) -> str | None:
    (_, before), (step, last) = [(at, scores[at]) for at in sorted(scores)][-2:]
    if before - last <= FALLS * abs(before):
        return None
    return f"the validation loss was still falling ({before:.3f} to {last:.3f} at step {step:,})"


def _falls_in_training(losses: dict[int, float]) -> str | None:
    ordered = [losses[step] for step in sorted(losses)]
    quarter = max(1, len(ordered) // 4)
    last, before = ordered[-quarter:], ordered[-2 * quarter:-quarter]
    if not before or _mean(before) - _mean(last) <= FALLS_IN_TRAINING * _mean(before):
        return None
    return f"the training loss was still falling ({_mean(before):.3f} to {_mean(last):.3f})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
