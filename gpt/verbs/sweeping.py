"""python -m gpt sweep: a small grid of runs, and a table of what came of them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.configuration import FinetuneConfig, PretrainConfig, parse_command_line
from gpt.errors import EXIT_STOPPED, Stopped, UserError, WorkFailed
from gpt.reports import report
from gpt.runs.history import History, read_histories
from gpt.terminal.runs import figure, in_columns

SCRIPTS = Path(__file__).parents[2]  # where train.py and finetune.py lie
MOST = 256  # runs of one grid
_FIELD = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Try:
    """One run of a grid: its name, its values of the fields that differ, and its command line."""

    name: str
    values: dict[str, str]
    words: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, fields, and devices."""
    parser.add_argument("words", metavar="CONFIG field=a,b,c", nargs="+",
                        help="a configuration of train.py or finetune.py, and fields: those with "
                             "several values, separated by commas, make the grid; the others are "
                             "the same in all runs")
    parser.add_argument("--devices", metavar="0,1",
                        help="GPUs, of which each takes a run at a time; default: one run after "
                             "the other, on what its configuration says")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, and stop")


def run(options: argparse.Namespace) -> None:
    """Train all of them; the same command again goes on with what is not done."""
    script, folder, tries = grid_of(options.words)
    if options.dry_run:
        return print("\n".join(f"python {script} {' '.join(one.words)}" for one in tries))
    folder.mkdir(parents=True, exist_ok=True)
    devices = options.devices.split(",") if options.devices else [None]
    free = list(devices)

    def train(one: Try) -> int:
        if children.stopped_by is not None:
            return EXIT_STOPPED
        device = free.pop()
        try:
            return children.wait(script, folder, one, device, len(devices) > 1)
        finally:
            free.append(device)

    with _forwarding() as children, ThreadPoolExecutor(len(devices)) as pool:
        codes = list(pool.map(train, tries))
    ended = [folder / one.name for one in tries if (folder / one.name / "metrics.jsonl").is_file()]
    if ended:
        print(table_of(tries, {run.name: run for run in read_histories(ended)}))
        report(ended).write(folder / "report.html")
        print(f"report: {folder / 'report.html'}")
    if children.stopped_by is not None or EXIT_STOPPED in codes:
        raise Stopped(f"stopped by {children.stopped_by or 'a run that was stopped'}; what was "
                      "learned is saved; the same command goes on")
    if failed := [one.name for one, code in zip(tries, codes, strict=True) if code]:
        raise WorkFailed(f"{len(failed)} of {len(tries)} runs failed: {', '.join(failed)}; what "
                         f"they said stands above{' and in their .log files' * (len(devices) > 1)}")


# ----- The grid


def grid_of(words: Sequence[str]) -> tuple[str, Path, list[Try]]:
    """(the script that trains, the folder of its runs, all of them), each checked before the first
    begins. Raises UserError for what is no grid, and as the script does for a mistake in a run."""
    same: list[str] = []
    several: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        given = split_values(text) if equals and _FIELD.fullmatch(name) else []
        if len(given) > 1:
            several[name] = given
        else:
            same.append(word)
    if not several:
        raise UserError("a sweep needs a field with several values: optim.lr=0.001,0.003")
    if (count := math.prod(map(len, several.values()))) > MOST:
        raise UserError(f"this grid has {count:,} runs; at most {MOST} are one sweep: leave out "
                        "fields or values")
    tunes = any(word.startswith("finetune.") or "\nfinetune:" in _text_of(word) for word in words)
    schema: Any = FinetuneConfig if tunes else PretrainConfig
    tries: dict[str, Try] = {}
    for chosen in itertools.product(*several.values()):
        values = dict(zip(several, chosen, strict=True))
        given = [*same, *(f"{name}={text}" for name, text in values.items())]
        config = parse_command_line(schema, given, "").config
        folder = Path(config.run.out_dir) / f"{config.run.name}-sweep"
        if (name := run_name(values)) in tries:
            raise UserError(f"two runs of this grid would be called {name}: give values that "
                            "differ")
        tries[name] = Try(name, values, [*given, f"run.out_dir={folder}", f"run.name={name}"])
    return "finetune.py" if tunes else "train.py", folder, list(tries.values())


def split_values(text: str) -> list[str]:
    """Values between commas, of which those in brackets and quotes separate nothing."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in _OPENING or sign in _CLOSING:
            depth += 1 if sign in _OPENING else -1
        elif sign == "," and not depth:
            values.append("")
            continue
        values[-1] += sign
    return [value.strip() for value in values]


def run_name(values: dict[str, str]) -> str:
    """What a run is called by its own values, in characters that a name may have."""
    parts = (f"{name.rpartition('.')[2]}-{text}" for name, text in values.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(parts)).strip("._-")[:120]


def _text_of(word: str) -> str:
    try:
        return "\n" + Path(word).read_text(encoding="utf-8")
    except (OSError, ValueError):  # a field, or what the script will refuse
        return ""


# ----- The runs


class _Children:
    """Processes that train, to which a signal is handed on once."""

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def wait(self, script: str, folder: Path, one: Try, device: str | None, apart: bool) -> int:
        """Train one run to its end. apart: what it says goes into a file of its own."""
        command = [sys.executable, str(SCRIPTS / script), *one.words]
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        with contextlib.ExitStack() as stack:
            output = stack.enter_context((folder / f"{one.name}.log").open("ab")) if apart else None
            with self._lock:
                print(f"{folder / one.name}" + (f" on GPU {device}" if device is not None else ""),
                      flush=True)
                child = subprocess.Popen(command, env=environment, stdout=output, stderr=output,
                                         start_new_session=True)
                self._running.add(child)
                if self.stopped_by is not None:  # since this one was begun
                    child.terminate()
            code = child.wait()
            with self._lock:
                self._running.discard(child)
        return code

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler: runs save and stop, and no other begins."""
        self.stopped_by = signal.Signals(number).name
        for child in list(self._running):
            child.send_signal(number)


@contextlib.contextmanager
def _forwarding() -> Iterator[_Children]:
    children = _Children()
    before = {number: signal.signal(number, children)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----- What came of them


def table_of(tries: Sequence[Try], runs: dict[str, History]) -> str:
    """The runs that have begun, the best first: their values, losses and speed."""
    fields = list(tries[0].values)
    rows = [(*(name.rpartition(".")[2] for name in fields), "val loss", "at step", "train loss",
             "tokens/s", "state")]
    told = [(one, runs[one.name]) for one in tries if one.name in runs]
    for one, history in sorted(told, key=lambda pair: _loss(pair[1])):
        best = history.best or {}
        rows.append((*(one.values[name] for name in fields), figure(best.get("val_loss"), ".4f"),
                     figure(best.get("step"), ",.0f"), figure(history.last("loss"), ".4f"),
                     figure(history.last("tokens_per_second"), ",.0f"), history.state))
    return in_columns(rows)


def _loss(history: History) -> float:
    found = (history.best or {}).get("val_loss")
    return float("inf") if found is None else float(found)
