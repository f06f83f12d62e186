"""A run's folder as figures: whatever is there of it, and what is not.

Nothing here fails for a run that is damaged, half-written, of an older format or still going on:
what cannot be read is said in `problems`. A line of metrics.jsonl is looked at once, and kept as
numbers: a million of them take a few seconds and some 100 MB.
"""

from __future__ import annotations

import contextlib
import copy
import re
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic_core import from_json

from gpt.configuration import fields, find_places, strict_yaml
from gpt.errors import UserError
from gpt.files import read_json, worked_in

Array: TypeAlias = np.ndarray[Any, Any]

COUNTERS = ("step", "tokens", "elapsed_seconds")  # more digits than float32 has
EXPECTED = (*COUNTERS, "loss", "lr", "grad_norm", "tokens_per_second", "flops_per_token", "mfu",
            "peak_memory_bytes", "data_seconds")
LONGEST_LINE = 1 << 20  # bytes; ours have some hundred
MOST_COLUMNS = 100
MOST_EVENTS = 10_000  # of each kind but training steps
FRESH_SECONDS = 600  # a run elsewhere that wrote since then is taken to go on
LONGEST_SAMPLE = 4000  # characters
AT_ONCE = 500  # lines


class Columns:
    """Training steps as columns of numbers; NaN where a line has none."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {}
        self._rows = 0

    def add_all(self, lines: Sequence[dict[str, Any]]) -> None:
        """The figures of some steps: at once, if all have those of the steps before, as numbers."""
        names = [name for name, value in lines[0].items() if number(value) is not None]
        alike = {len(line) for line in lines} == {len(lines[0])} and [*self._columns] == names
        if not alike or len(names) < 2:
            return self._add_each(lines)
        try:
            added = [array(_kind(name), column) for name, column in zip(
                names, zip(*map(itemgetter(*names), lines), strict=True), strict=True)]
        except (KeyError, TypeError, OverflowError):
            return self._add_each(lines)
        for name, column in zip(names, added, strict=True):
            self._columns[name].extend(column)
        self._rows += len(lines)

    def _add_each(self, lines: Sequence[dict[str, Any]]) -> None:
        columns = self._columns
        for line in lines:
            for name, value in line.items():
                if (number(value) is None
                        or (name not in columns and len(columns) == MOST_COLUMNS)):
                    continue
                if name not in columns:
                    columns[name] = array(_kind(name), [np.nan]) * self._rows
                columns[name].append(value)
            self._rows += 1
            for column in columns.values():
                if len(column) < self._rows:
                    column.append(np.nan)

    def arrays(self) -> dict[str, Array]:
        """Each column, (steps,); a step that was logged twice as it was the last time."""
        found = {name: np.frombuffer(column, dtype=column.typecode)
                 for name, column in self._columns.items()}
        for column in found.values():
            column[~np.isfinite(column)] = np.nan
        steps = found.get("step", np.empty(0))
        if len(steps) < 2 or (np.diff(steps) > 0).all():
            return found
        _, from_behind = np.unique(steps[::-1], return_index=True)
        kept = len(steps) - 1 - from_behind
        return {name: column[kept] for name, column in found.items()}


def _kind(name: str) -> Literal["d", "f"]:
    return "d" if name in COUNTERS else "f"


@dataclass
class History:
    """What is there of a run.

    steps: figures of training by name, (steps,) each. evaluations, cores, warnings, ends: lines of
    metrics.jsonl as they are, the newest 10,000 of each. best: the evaluation with the lowest loss.
    samples: generated texts. resumed: steps from which it was continued. problems: what is missing
    or damaged. name: as the folder is called.
    """

    path: Path
    steps: dict[str, Array] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    cores: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    resumed: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    last_line: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.path.resolve().name

    @cached_property
    def state(self) -> str:
        """As `state_of` says it."""
        return state_of(self.path, self.last_line)

    @cached_property
    def places(self) -> dict[str, Any]:
        """The configuration, with files and folders as they are found from here."""
        found = copy.deepcopy(self.config)
        find_places(found, self.path)
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration's fields by dotted name; of the model, what it became."""
        return fields(self.config) | {name: value for name, value in self.identity.items()
                                      if name.startswith("model.")}

    @cached_property
    def flops(self) -> Array:
        """Arithmetic of all steps up to each, (steps,); empty if it is not known."""
        if not {"tokens", "flops_per_token"} <= self.steps.keys():
            return np.empty(0)
        tokens = np.diff(self.steps["tokens"], prepend=0.0)
        return np.nancumsum(tokens * self.steps["flops_per_token"])

    def last(self, name: str) -> float | None:
        """The newest figure of training."""
        column = self.steps.get(name, np.empty(0))
        known = column[np.isfinite(column)]
        return float(known[-1]) if len(known) else None


def state_of(folder: Path, last: dict[str, Any]) -> str:
    """done, stopped (it says by what), running, or interrupted: killed, or failed.

    last: the last line of its metrics.jsonl.
    """
    if last.get("event") == "end" and "stopped_by" not in last:
        return "done"
    with contextlib.suppress(OSError):
        age = time.time() - (folder / "metrics.jsonl").stat().st_mtime
        if worked_in(folder, or_elsewhere=age < FRESH_SECONDS):
            return "running"
    return f"stopped by {last['stopped_by']}" if "stopped_by" in last else "interrupted"


def number(value: Any) -> float | None:
    """A finite number, or None for all else that a line may hold."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def is_run(folder: Path) -> bool:
    """Whether a run has been at work in a folder."""
    return any((folder / name).is_file() for name in ("metrics.jsonl", "config.yaml"))


def read_histories(folders: Sequence[Path]) -> list[History]:
    """Several runs; those whose folders are called alike have their paths as names."""
    runs = [read_history(folder) for folder in folders]
    often = Counter(run.name for run in runs)
    for run in runs:
        run.name = run.name if often[run.name] == 1 else str(run.path)
    return runs


def read_history(folder: Path) -> History:
    """All that is there of a run. Raises UserError if the folder holds none."""
    if not is_run(folder):
        raise UserError(f"{folder} holds no run: it has neither metrics.jsonl nor config.yaml; "
                        "give run folders such as runs/quickstart")
    history = History(folder)
    history.config = _part(history, "config.yaml", lambda path: strict_yaml.load_file(path).values)
    history.environment = _part(history, "environment.json", read_json)
    history.identity = _part(history, "identity.json", read_json)
    _read_metrics(history)
    samples, bad, torn = _lines(folder / "samples.jsonl")
    history.samples = [*deque(({"step": line.get("step"), "prompt": _cut(line.get("prompt", "")),
                                "text": _cut(line["text"])} for line in samples if "text" in line),
                              maxlen=MOST_EVENTS)]
    _say_what_is_damaged(history, "samples.jsonl", bad, torn)
    history.resumed = [int(match[1]) for line in logged(folder)
                       if (match := re.search(r"^continuing from .*step-(\d{8,15})$", line))]
    return history


def _cut(text: Any) -> str:
    return str(text) if len(str(text)) <= LONGEST_SAMPLE else f"{str(text)[:LONGEST_SAMPLE]} …"


def logged(folder: Path) -> Iterator[str]:
    """The lines of a run's train.log, as far as they are few and short."""
    path = folder / "train.log"
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in islice(iter(lambda: file.readline(LONGEST_LINE), ""), MOST_EVENTS):
                yield line.rstrip("\n")


def _part(history: History, name: str, read: Any) -> dict[str, Any]:
    """A file of the run as a mapping; empty, and said, if it is not one."""
    if not (history.path / name).is_file():
        history.problems.append(f"{name} is missing")
        return {}
    try:
        values = read(history.path / name)
        if isinstance(values, dict):
            return values
        history.problems.append(f"{name} is damaged: it is no mapping")
    except (UserError, OSError, RecursionError) as error:
        history.problems.append(f"{name} is damaged: {error}")
    return {}


def _read_metrics(history: History) -> None:
    lines, bad, torn = _lines(history.path / "metrics.jsonl")
    columns, others = Columns(), {"eval": history.evaluations, "core": history.cores,
                                  "warning": history.warnings, "end": history.ends}
    left_out: set[str] = set()
    while some := list(islice(lines, AT_ONCE)):
        events = [line.get("event") or guessed(line) for line in some]
        training = [line for line, event in zip(some, events, strict=True) if event == "train"]
        if training:
            columns.add_all(training)
        for line, event in zip(some, events, strict=True):
            others.get(str(event), []).append(line)
        history.best = _better(history.best, some)
        cut = [event for event, kept in others.items() if len(kept) > MOST_EVENTS]
        for event in cut:
            del others[event][:-MOST_EVENTS]
        left_out.update(cut)
        history.last_line = some[-1]
    history.steps = columns.arrays()
    history.problems += [f"of {event} lines in metrics.jsonl, only the newest {MOST_EVENTS:,} are "
                         "shown" for event in sorted(left_out)]
    _say_what_is_damaged(history, "metrics.jsonl", bad, torn)
    if not (history.path / "metrics.jsonl").is_file():
        history.problems.append("metrics.jsonl is missing: there is nothing to draw yet")
    elif not history.steps:
        history.problems.append("metrics.jsonl has no training steps: there are no curves")
    elif (lacks := [name for name in EXPECTED if name not in history.steps]):
        history.problems.append(f"metrics.jsonl has no {', '.join(lacks)}: an older format, or "
                                "another program wrote it")
    unknown = int(np.isnan(history.steps.get("loss", np.empty(0))).sum())
    if unknown:
        history.problems.append(f"{unknown:,} steps have a loss that is not finite")


def _better(best: dict[str, Any] | None, lines: Sequence[dict[str, Any]]
            ) -> dict[str, Any] | None:
    """The evaluation with the lowest loss, of the best before and some lines."""
    scored = [line for line in [best, *lines]
              if line is not None and number(line.get("val_loss")) is not None]
    return min(scored, key=lambda line: float(line["val_loss"]), default=None)


def guessed(line: dict[str, Any]) -> str:
    """The event of a line that does not say it."""
    return "train" if "loss" in line else "eval" if "val_loss" in line else ""


def _lines(path: Path) -> tuple[Iterator[dict[str, Any]], list[int], list[int]]:
    """(the mappings of a file of JSON lines, one by one; and once they are read, numbers of lines
    that could not be, and of the last one if it is only half there)"""
    bad: list[int] = []
    torn: list[int] = []

    def read() -> Iterator[dict[str, Any]]:
        if not path.is_file():
            return
        with path.open("rb") as file:
            for place, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
                while len(line) >= LONGEST_LINE and not line.endswith(b"\n"):  # what no run writes
                    line = b"?" + file.readline(LONGEST_LINE)
                try:
                    value = from_json(line)  # pydantic's: a fourth of the time that json takes
                    if isinstance(value, dict):
                        yield value
                        continue
                except ValueError:
                    pass
                if line.strip():
                    (bad if line.endswith(b"\n") else torn).append(place)

    return read(), bad, torn


def _say_what_is_damaged(history: History, name: str, bad: list[int], torn: list[int]) -> None:
    if bad:
        places = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        history.problems.append(f"{len(bad):,} lines of {name} cannot be read, and are left out: "
                                f"{places}")
    if torn:
        history.problems.append(f"the last line of {name} is half-written, and is left out")


def running_mean(values: Array, share: float = 0.02) -> Array:
    """An exponential mean over about that share of the values, without a bias at the start."""
    keep = np.exp(-1 / max(1.0, share * len(values)))
    total = weight = 0.0
    means = np.empty(len(values))
    for place, value in enumerate(values.tolist()):
        if np.isfinite(value):
            total, weight = total * keep + value, weight * keep + 1
        means[place] = total / weight if weight else np.nan
    return means


def parameters_told(folder: Path) -> int | None:
    """How many parameters a run's log says that its model has."""
    for line in islice(logged(folder), 20):
        if match := re.search(r"(\d[\d,]{0,20}) parameters", line):
            return int(match[1].replace(",", ""))
    return None
