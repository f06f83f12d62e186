"""Row 15: a clock ten years off, files from the future, copied folders: steps decide."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.faults.rows import runs
from tests.faults.tally import Tally
from tests.faults.warm import Done, command
from tests.tiny import command_line, script_environment

TEN_YEARS = 10 * 365 * 86400


def run(short: bool, folder: Path) -> Tally:
    """Times of files in this process; short: without commands under another clock."""
    tally = Tally()
    runs.dataset(folder)
    runs.in_two_parts(folder, "whole")
    expected = runs.outcome(folder / "runs" / "whole")
    for number, shift in enumerate((-TEN_YEARS, TEN_YEARS)):
        name = f"shifted-{number}"
        assert runs.train(folder, name, 6).code == 0
        _shift(folder / "runs" / name, shift)
        done = runs.train(folder, name, 12)
        tally.expect(_problem(done, folder / "runs" / name, expected))
    tally.add(_copied(folder, expected))
    if not short:
        tally.add(_under_another_clock(folder, expected))
    return tally


def _shift(folder: Path, seconds: float) -> None:
    """Times of files, the newer the older they were."""
    now = time.time()
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (now + seconds - number, now + seconds - number))


def _problem(done: Done, run: Path, expected: dict) -> str | None:
    if done.code:
        return f"{run.name}: {done.code}: {done.err[-300:]!r}"
    return runs.different(runs.outcome(run), expected) or _durations(run)


def _durations(run: Path) -> str | None:
    """What is wrong with the seconds that a run logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A save is told when it is written; an end counts the last evaluation and the saves, where
    # what goes on counts from the checkpoint.
    seconds = [line["elapsed_seconds"] for line in lines
               if "elapsed_seconds" in line and line["event"] not in ("save", "end")]
    if seconds != sorted(seconds):
        return f"{run.name}: seconds run backwards"
    fine = all(0 <= each < 600 for each in seconds) and all(
        line.get("tokens_per_second", 1) > 0 and line.get("data_seconds", 0) >= 0 for line in lines)
    return None if fine else f"{run.name}: no run takes {seconds[-1]} s"


def _copied(folder: Path, expected: dict) -> Tally:
    """A run that goes on in a copy of its folder, with and without the times of its files."""
    tally = Tally()
    assert runs.train(folder, "half", 6).code == 0
    for keeps_times in (True, False):
        name = f"copied-{keeps_times}"
        shutil.copytree(folder / "runs" / "half", folder / "runs" / name,
                        copy_function=shutil.copy2 if keeps_times else shutil.copy)
        tally.expect(_problem(runs.train(folder, name, 12), folder / "runs" / name, expected))
    elsewhere = folder / "elsewhere"
    shutil.copytree(folder / "runs" / "half", elsewhere / "runs" / "half")
    shutil.copytree(folder / "data", elsewhere / "data")
    tally.expect(_problem(runs.train(elsewhere, "half", 12), elsewhere / "runs" / "half",
                          expected))
    done = command("sample.py", "runs/half", "--max-new-tokens", 2, folder=elsewhere)
    tally.expect(None if done.code == 0 else done.last)
    return tally


def _under_another_clock(folder: Path, expected: dict) -> Tally:
    """Commands whose clock is ten years off, and goes on from the right one or to it."""
    tally = Tally()
    if shutil.which("faketime") is None:
        tally.notes.append("there is no faketime here: without commands under another clock")
        return tally
    for name, clocks in (("ahead", ("+10y", "")), ("behind", ("-10y", "")),
                         ("becomes ahead", ("", "+10y")), ("becomes behind", ("", "-10y"))):
        run_name = name.replace(" ", "-")
        for steps, clock in zip((6, 12), clocks, strict=True):
            words = command_line("train.py", *runs.words(run_name, steps))
            prefix = ["faketime", "-f", clock] if clock else []
            done = subprocess.run([*prefix, *words], cwd=folder, capture_output=True, text=True,
                                  env=script_environment(LD_PRELOAD="", DONT_FAKE_MONOTONIC="0"))
        came = Done(done.returncode, done.stdout, done.stderr, 0.0, 0.0)
        problem = _problem(came, folder / "runs" / run_name, expected)
        tally.expect(problem and f"{name}: {problem}")
    return tally
