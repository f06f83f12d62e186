"""A task's data, split into what is learned from and what is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gpt.configuration import FinetuneSection
from gpt.errors import UserError
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.formats import TaskData, read_task
from gpt.shards import held_out_names

VAL_FRACTION = 0.1
One = TypeVar("One", Example, Preference)


def load_splits(section: FinetuneSection, seed: int) -> tuple[TaskData, TaskData]:
    """(training, validation), both of one format. Raises UserError."""
    data = read_task(Path(section.data), section.format)
    if section.val_data is not None:
        return data, read_task(Path(section.val_data), data.format)
    fraction = held_out_fraction(section)
    if not fraction:
        return data, TaskData(data.format)
    if data.format == "text" and len(data.examples) == 1:
        head, tail = _cut_in_two(data.examples[0], fraction)
        return TaskData(data.format, [head]), TaskData(data.format, [tail])
    examples = _all_labels_to_learn(*hold_out(data.examples, fraction, seed))
    preferences = hold_out(data.preferences, fraction, seed)
    train, val = (TaskData(data.format, *split)
                  for split in zip(examples, preferences, strict=True))
    if not (train.examples or train.preferences) or not (val.examples or val.preferences):
        count = len({*map(_name, data.examples), *map(_name, data.preferences)})
        raise UserError(f"{section.data} has {count} different prompts, or texts, too few to hold "
                        f"out {fraction:.0%}; give finetune.val_data, or more data")
    return train, val


def _cut_in_two(example: Example, fraction: float) -> tuple[Example, Example]:
    """A text alone, without its last part, and that part; cut where a line or a word ends."""
    text = example.completion
    place = int(len(text) * (1 - fraction))
    for end in ("\n", " "):
        if (found := text.rfind(end, 0, place) + 1) > place // 2:
            place = found
            break
    head, tail = text[:place], text[place:]
    if not head.strip() or not tail.strip():
        raise UserError(f"{example.where}: the text is too short to hold out {fraction:.0%} of it; "
                        "give finetune.val_data, or more text")
    answer = example.messages[0]
    return (replace(example, messages=(replace(answer, content=head),)),
            replace(example, messages=(replace(answer, content=tail),)))


def held_out_fraction(section: FinetuneSection) -> float:
    """The share of the data that validates, where that has no file of its own."""
    return VAL_FRACTION if section.val_fraction is None else section.val_fraction


def hold_out(examples: Sequence[One], fraction: float, seed: int) -> tuple[list[One], list[One]]:
    """(training, validation): by a hash of each prompt, so equal prompts stay together."""
    names = [_name(example) for example in examples]
    held_out = held_out_names(names, fraction, seed)
    return ([e for e, name in zip(examples, names, strict=True) if name not in held_out],
            [e for e, name in zip(examples, names, strict=True) if name in held_out])


def _all_labels_to_learn(train: list[Example], val: list[Example]
                         ) -> tuple[list[Example], list[Example]]:
    """With examples of labels that would be held out alone among those to learn from."""
    known = labels_of(train) | {None}
    return (train + [example for example in val if example.label not in known],
            [example for example in val if example.label in known])


def labels_of(examples: Sequence[Example]) -> set[str]:
    """The classes that some examples name."""
    return {example.label for example in examples if example.label is not None}


def _name(example: Example | Preference) -> str:
    """What tells an example from others: its prompt, or all of it where there is none."""
    answer = example.completion if isinstance(example, Example) else example.chosen.content
    return "\n".join(message.content for message in example.prompt) or answer
