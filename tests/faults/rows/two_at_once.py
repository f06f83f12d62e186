"""Row 13: two runs in one folder, two preparations of one dataset, and locks of the killed."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.rows import runs
from tests.faults.tally import Tally
from tests.faults.warm import Done, Started, command, start


def run(short: bool, folder: Path) -> Tally:
    """The second is refused while the first works, and goes on once that is killed."""
    tally = Tally()
    runs.dataset(folder)
    steps = 40 if short else 100
    assert runs.train(folder, "whole", steps).code == 0
    expected = runs.outcome(folder / "runs" / "whole")
    for number in range(1 if short else 5):
        name = f"run-{number}"
        run_folder = folder / "runs" / name
        first = start("train.py", *runs.words(name, steps), folder=folder)
        _until(first, lambda: (run_folder / "metrics.jsonl").exists())  # noqa: B023
        while_first_works = runs.train(folder, name, steps)
        tally.expect(_refused(while_first_works, first, f"runs/{name}"))
        first.kill()
        first.wait()
        after = runs.train(folder, name, steps)
        tally.expect((None if after.code == 0 else after.last)
                     or runs.different(runs.outcome(run_folder), expected))
    for number in range(1 if short else 5):
        tally.add(_preparations(folder, f"made-{number}"))
    return tally


def _preparations(folder: Path, name: str) -> Tally:
    tally = Tally()
    (folder / "long.txt").write_text("the quick brown fox\n" * 200_000)
    words = ("data/prepare.py", "long.txt", "tokenizer=bpe:300", f"out={name}", "workers=1")
    first = start(*words, folder=folder)
    _until(first, lambda: _said(folder / f"{name}.partial" / "lock"))
    tally.expect(_refused(command(*words, folder=folder), first, f"{name}.partial"))
    first.kill()
    first.wait()
    after = command(*words, folder=folder)
    tally.expect(None if after.code == 0 else after.last)
    return tally


def _said(lock: Path) -> bool:
    return lock.exists() and bool(lock.read_text())


def _until(started: Started, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert not started.is_over and time.monotonic() < deadline, started.wait().err
        time.sleep(0.002)


def _refused(done: Done, first: Started, where: str) -> str | None:
    told = (rf"error: {where} is in use by process {first.pid} on "
            rf"{re.escape(socket.gethostname())}; wait for it, or choose another \S+")
    if done.code == 2 and re.fullmatch(told, done.last):
        return None
    return f"the second: {done.code}: {done.err[-300:]!r}"
