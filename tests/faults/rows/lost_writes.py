"""Row 4: a crash after any call, with writes and names that were not flushed lost, torn, reordered.

The calls of one save are recorded once, and each beginning of them is replayed.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.disk import Disk, crashes
from tests.faults.failing_calls import Call, calls_of, recording
from tests.faults.rows import preparations
from tests.faults.rows.saves import (
    SCENARIOS,
    Scenario,
    goes_on,
    is_old_or_new,
    scratch,
    undisturbed,
)
from tests.faults.tally import Tally
from tests.faults.warm import forked

Looks = Callable[[Path, bool, bool], str | None]  # (root, all came to its end, go on) → problem


def run(short: bool, folder: Path) -> Tally:
    """All scenarios, and a preparation; short: two of them."""
    tally, draw = Tally(), random.Random(0)
    for scenario in SCENARIOS[1:3] if short else SCENARIOS:
        tally.add(_saves(scenario, draw, 1 if short else 40))
    tally.add(_preparation(draw, short))
    return tally


def _saves(scenario: Scenario, draw: random.Random, count: int) -> Tally:
    known = undisturbed(scenario)
    with scratch() as root:
        before = root / "before"
        before.mkdir()
        scenario.start(before)
        calls, disk = recorded(before, lambda: scenario.save(before / "run" / "checkpoints"))

        def look(crashed: Path, done: bool, further: bool) -> str | None:
            folder = crashed / "run" / "checkpoints"
            problem = is_old_or_new(scenario, folder, known, done)
            if problem is None and further:
                problem = goes_on(scenario, folder, known)
            return problem

        return replayed(scenario.name, disk, calls, root, look, draw, count)


def _preparation(draw: random.Random, short: bool) -> Tally:
    with scratch() as root:
        before = root / "before"
        before.mkdir()
        preparations.corpus(before)
        whole = preparations.whole(before)
        calls, disk = recorded(before, lambda: preparations.prepare_in(before))

        def look(crashed: Path, done: bool, further: bool) -> str | None:
            return preparations.problem(crashed, whole, done, further)

        step = 9 if short else 1
        return replayed("a preparation", disk, calls, root, look, draw, 0 if short else 6, step)


def recorded(root: Path, work: Callable[[], None]) -> tuple[list[Call], Disk]:
    """The calls of some work below a folder, and the folder as it was before."""
    disk = Disk(root)
    with tempfile.TemporaryFile() as log:
        def noted() -> None:
            with recording(root, log.fileno()):
                work()

        forked(noted)
        log.seek(0)
        return calls_of(log.read()), disk


def replayed(name: str, disk: Disk, calls: list[Call], root: Path, look: Looks,
             draw: random.Random, count: int, step: int = 1) -> Tally:
    """Crash before the first call, and after each."""
    tally = Tally()
    for number in range(len(calls) + 1):
        if number:
            disk.apply(calls[number - 1])
        done = number == len(calls)
        if number % step and not done:
            continue
        for tried, (way, keeps, tears) in enumerate(crashes(draw, count * (5 if done else 1))):
            crashed = root / "crashed"
            shutil.rmtree(crashed, ignore_errors=True)
            disk.crash(crashed, keeps, tears)
            problem = look(crashed, done, tried == number % 4)
            tally.expect(problem and f"{name}: crashed after call {number} of {len(calls)} "
                         f"({_told(calls, number)}), {way}: {problem}")
    return tally


def _told(calls: list[Call], number: int) -> str:
    return f"{calls[number - 1].kind} {Path(calls[number - 1].path).name}" if number else "none"
