"""CORE: the mean of 22 tasks, learned from examples in the prompt, each centred on guessing.

The bundle is the published one: core.yaml names tasks, eval_meta_data.csv what guessing gets,
eval_data/ holds their questions as JSON lines. What is drawn (the order of questions, examples for
each) is drawn as speedruns draw it, so that figures can be compared.
Source: Li et al. 2024, DataComp-LM (arXiv:2406.11794), section 3.5 and appendix G.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.evaluation.continuations import Row, common_prefix, judge
from gpt.evaluation.intervals import DRAWS, SHARE, Interval
from gpt.files import sha256_of
from gpt.language_model import LanguageModel
from gpt.tokenizer import Tokenizer

TASKS, CHANCES, QUESTIONS = "core.yaml", "eval_meta_data.csv", "eval_data"
ORDER_SEED, EXAMPLES_SEED = 1337, 1234
AT_ONCE = 256  # questions whose prompts stand in memory
Item = dict[str, Any]
_FIELDS = {"multiple_choice": ("query", "choices", "gold"),
           "schema": ("context_options", "continuation", "gold"),
           "language_modeling": ("context", "continuation")}


class Task(BaseModel):
    """A task as core.yaml says it. What else stands there is of no use here."""

    label: str
    dataset_uri: str
    num_fewshot: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    icl_task_type: Literal["multiple_choice", "schema", "language_modeling"]
    continuation_delimiter: str = " "


@dataclass(frozen=True)
class TaskScore:
    """accuracy, and centred: 0 for guessing, 1 for all right."""

    label: str
    questions: int
    accuracy: float
    centred: float


@dataclass(frozen=True)
class Core:
    """core: the mean of the tasks' centred accuracies. interval: with other questions."""

    core: float
    interval: Interval
    tasks: list[TaskScore]


class Bundle:
    """A folder with the published bundle. Raises UserError for what is missing in it or damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        missing = [name for name in (TASKS, CHANCES, QUESTIONS) if not (folder / name).exists()]
        if missing:
            raise UserError(f"{folder} is no bundle of CORE: it has no {', '.join(missing)}; give "
                            "the folder eval_bundle of the published archive")
        try:
            values = load_file(folder / TASKS).values
            self.tasks = [Task(**each) for each in values["icl_tasks"]]
        except (ValidationError, TypeError, KeyError) as error:
            raise UserError(f"{folder / TASKS} has no sound icl_tasks: {error}") from error
        self.chances = self._chances()
        unknown = [task.label for task in self.tasks if task.label not in self.chances]
        absent = [task.dataset_uri for task in self.tasks if not self._file(task).is_file()]
        if not self.tasks or unknown or absent:
            what = (f"no row for {', '.join(unknown)} in {CHANCES}" if unknown else
                    f"no {QUESTIONS}/{', '.join(absent)}" if absent else f"no task in {TASKS}")
            raise UserError(f"{folder}: there is {what}; fetch the bundle again")

    @property
    def sha256(self) -> str:
        """Of all that the score rests on."""
        files = [self.folder / TASKS, self.folder / CHANCES, *map(self._file, self.tasks)]
        return hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()

    def _file(self, task: Task) -> Path:
        return self.folder / QUESTIONS / task.dataset_uri

    def _chances(self) -> dict[str, float]:
        """What guessing gets, by task, as a share."""
        path = self.folder / CHANCES
        try:
            with path.open(newline="", encoding="utf-8") as lines:
                said = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(lines)}
        except (KeyError, ValueError, csv.Error) as error:
            raise UserError(f"{path} needs the columns Eval Task and Random baseline: {error}"
                            ) from error
        found = {}
        for label, percent in said.items():
            with contextlib.suppress(ValueError, TypeError):  # of tasks that are no part of CORE
                if 0 <= float(percent) < 100:
                    found[label] = float(percent) / 100
        return found

    def items(self, task: Task) -> list[Item]:
        """All questions of a task, in the order in which they are asked. Raises UserError."""
        path, found = self._file(task), []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                found.append(_item(line, task, f"{path}, line {number}"))
        if len(found) <= task.num_fewshot[0]:
            raise UserError(f"{path} has {len(found)} questions, too few for {task.num_fewshot[0]} "
                            "examples beside one")
        random.Random(ORDER_SEED).shuffle(found)
        return found


def _item(line: str, task: Task, where: str) -> Item:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}") from error
    wanted = _FIELDS[task.icl_task_type]
    if not isinstance(item, dict) or not {*wanted} <= {*item}:
        raise UserError(f"{where}: a question of {task.icl_task_type} has {', '.join(wanted)}")
    options = item.get(wanted[0]) if task.icl_task_type == "schema" else item.get("choices")
    if "gold" in wanted and not (isinstance(options, list) and isinstance(item["gold"], int)
                                 and 0 <= item["gold"] < len(options)):
        raise UserError(f"{where}: gold must be the number of one of its options")
    return dict(item)


def core_score(lm: LanguageModel, bundle: Bundle, most: int | None = None) -> Core:
    """A model's score. most: questions of each task; None: all."""
    scores, draws, generator = [], [], np.random.default_rng(0)
    for task in bundle.tasks:
        items = bundle.items(task)
        right = answered(lm, task, items, min(most or len(items), len(items)))
        accuracy, chance = float(np.mean(right)), bundle.chances[task.label]
        scores.append(TaskScore(task.label, len(right), accuracy,
                                (accuracy - chance) / (1 - chance)))
        drawn = generator.binomial(len(right), accuracy, DRAWS) / len(right)  # the bootstrap of 0/1
        draws.append((drawn - chance) / (1 - chance))
    low, high = np.quantile(np.mean(draws, axis=0), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Core(float(np.mean([each.centred for each in scores])),
                Interval(float(low), float(high)), scores)


def answered(lm: LanguageModel, task: Task, items: Sequence[Item], count: int) -> list[bool]:
    """Whether each of the first `count` questions is answered rightly."""
    right = []
    for first in range(0, count, AT_ONCE):  # prompts of thousands of tokens each
        some = range(first, min(first + AT_ONCE, count))
        rows = [rows_of(lm.tokenizer, task, items, number) for number in some]
        for number, judged in zip(some, judge(lm, rows), strict=True):
            nats = [-one.logprob / one.tokens for one in judged]
            right.append(judged[0].greedy if task.icl_task_type == "language_modeling" else
                         nats.index(min(nats)) == items[number]["gold"])
    return right


def rows_of(tokenizer: Tokenizer, task: Task, items: Sequence[Item], number: int) -> list[Row]:
    """A question with its examples, once for each of its options, as tokens."""
    drawn = random.Random(EXAMPLES_SEED + number).sample(range(len(items) - 1), task.num_fewshot[0])
    before = "".join(f"{_whole(task, items[i + (i >= number)])}\n\n" for i in drawn)  # all others
    after = items[number]
    delimiter = task.continuation_delimiter
    if task.icl_task_type == "language_modeling":
        whole = tokenizer.encode_prompt(before + _whole(task, after), begin=True)
        asked = f"{before}{after['context'].strip()}{delimiter}".strip()
        start = common_prefix([whole, tokenizer.encode_prompt(asked, begin=True)])
        return [Row(whole, max(1, min(start, len(whole) - 1)))]
    if task.icl_task_type == "schema":
        texts = [f"{context}{delimiter}{after['continuation']}"
                 for context in after["context_options"]]
        ids = [tokenizer.encode_prompt(before + text, begin=True) for text in texts]
        judged = common_prefix([each[::-1] for each in ids])
        return [Row(each, max(1, len(each) - judged)) for each in ids]
    texts = [f"{after['query']}{delimiter}{choice}" for choice in after["choices"]]
    ids = [tokenizer.encode_prompt(before + text, begin=True) for text in texts]
    start = common_prefix(ids)
    return [Row(each, max(1, min(start, len(each) - 1))) for each in ids]


def _whole(task: Task, item: Item) -> str:
    """A question with its answer."""
    delimiter = task.continuation_delimiter
    if task.icl_task_type == "multiple_choice":
        return f"{item['query']}{delimiter}{item['choices'][item['gold']]}"
    if task.icl_task_type == "schema":
        return f"{item['context_options'][item['gold']]}{delimiter}{item['continuation']}"
    return f"{item['context'].strip()}{delimiter}{item['continuation']}"
