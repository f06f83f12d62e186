"""What is asked for a report: runs, or a dataset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.reports import dataset, training
from gpt.reports.chart import Chart
from gpt.reports.page import Page
from gpt.runs.history import is_run, read_histories
from gpt.shards import is_dataset

FILE = "report.html"
WATCH_SECONDS = 2  # between two looks at a run, at least
WATCH_SHARE = 0.1  # of the time, at most, that looking takes


def report(paths: str | Path | Sequence[str | Path]) -> Page:
    """The page of some runs, or of one dataset; a notebook shows it, `write` makes a file of it.

    Raises UserError if a folder holds neither.
    """
    folders = _folders([paths] if isinstance(paths, str | Path) else paths)
    if is_dataset(folders[0]):
        return dataset.dataset_page(folders[0])
    return training.training_page(read_histories(folders))


def figures(paths: Sequence[str | Path]) -> dict[str, Any]:
    """The numbers behind it."""
    folders = _folders(paths)
    if is_dataset(folders[0]):
        return dataset.dataset_figures(folders[0])
    return training.figures(read_histories(folders))


def charts(paths: Sequence[str | Path]) -> list[Chart]:
    """What it draws."""
    folders = _folders(paths)
    if is_dataset(folders[0]):
        return dataset.dataset_page(folders[0]).charts
    return training.drawn(read_histories(folders))


def place_of(paths: Sequence[str | Path]) -> Path:
    """Where a report is written if nobody says: in the folder that it is about."""
    return Path(paths[0]) / FILE if len(paths) == 1 else Path(FILE)


def refuse_no_place(output: Path) -> None:
    """Raise UserError if a page cannot be written there."""
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    if output.exists() and not (output.is_file() or output.is_dir()):  # it would be replaced
        raise UserError(f"--output {output} is a device or a pipe; give a file")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; give a file, such as {output / FILE}")


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has not."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_at_end(run: Path) -> str:
    """Write the report of a run that has just ended; returns what is said of it."""
    try:
        report(run).write(run / FILE)
    except Exception as error:  # whatever it is: the run is saved, and has not failed
        return (f"no report was written ({type(error).__name__}: {error}); python -m gpt report "
                f"{run} tries again")
    return f"report: {run / FILE}"


def watch(paths: Sequence[str | Path], output: Path, say: Callable[[str], None]) -> None:
    """Write a report again and again until no run goes on any more."""
    folders, first = _folders(paths), True
    if any(map(is_dataset, folders)):
        raise UserError("--watch is for runs that go on; a dataset is finished")
    pause = WATCH_SECONDS
    try:
        while True:
            began = time.monotonic()
            runs = read_histories(folders)
            training.training_page(runs, refresh_seconds=pause).write(output)
            if not any(run.state == "running" for run in runs):
                return
            if first:
                say(f"{output} is written anew until the run ends; Ctrl-C leaves it")
            first, pause = False, max(WATCH_SECONDS,
                                      round((time.monotonic() - began) / WATCH_SHARE))
            time.sleep(pause)
    except KeyboardInterrupt:  # a page that nobody writes any more is not to be read again
        report(folders).write(output)


def _folders(paths: Sequence[str | Path]) -> list[Path]:
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not (is_dataset(folder) or is_run(folder)):
            raise UserError(f"{folder} holds no run and no dataset; give run folders such as "
                            "runs/quickstart, or one dataset such as data/stdlib")
    if len(folders) > 1 and any(map(is_dataset, folders)):
        raise UserError("give one dataset, or runs alone")
    if not folders:
        raise UserError("give a run folder such as runs/quickstart")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same run is given twice")
    return folders
