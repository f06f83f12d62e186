"""Row 4: a crash after any call, with writes and names that were not flushed lost, torn, reordered.

The calls of one save are recorded once, and each beginning of them is replayed.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpt.runs import checkpoint
from tests.faults.disk import Disk, crashes
from tests.faults.failing_calls import Call, calls_of, recording
from tests.faults.rows import preparations, runs
from tests.faults.rows.saves import (
    SCENARIOS,
    Scenario,
    goes_on,
    is_old_or_new,
    scratch,
    undisturbed,
)
from tests.faults.tally import Tally
from tests.faults.warm import forked, obey

Looks = Callable[[Path, bool, bool], str | None]  # (root, all came to its end, go on) → problem


def run(short: bool, folder: Path) -> Tally:
    """All scenarios, a preparation, and a run; short: two scenarios, and fewer crashes."""
    tally, draw = Tally(), random.Random(0)
    for scenario in SCENARIOS[1:3] if short else SCENARIOS:
        tally.add(_saves(scenario, draw, 1 if short else 40))
    tally.add(_preparation(draw, short))
    tally.add(_run(folder, draw, short))
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


def _run(folder: Path, draw: random.Random, short: bool) -> Tally:
    """A run of a few saves: what is found is sound, no older than what was flushed, and the same
    command comes to the same bits."""
    runs.dataset(folder)
    before = folder / "before"
    before.mkdir()
    words = list(runs.words("run", 6, f"run.out_dir={before}"))
    calls, disk = recorded(before, lambda: obey("train.py", words), folder)
    expected, certain = runs.outcome(before / "run"), [0]

    def look(crashed: Path, done: bool, further: bool) -> str | None:
        checkpoints = crashed / "run" / "checkpoints"
        certain[0] = max([certain[0], *disk.flushed_steps("run/checkpoints")])
        with contextlib.redirect_stderr(io.StringIO()):
            newest = checkpoint.newest_sound(checkpoints)
        found = 0 if newest is None else checkpoint.read_state(newest).step
        if found < (6 if done else certain[0]):
            return f"step {found} is found, and {certain[0]} was certain"
        if not further or draw.random() > 0.2:
            return None
        again = runs.train(folder, "run", 6, f"run.out_dir={crashed}")
        if again.code:
            return f"the same command: {again.last}"
        return runs.different(runs.outcome(crashed / "run"), expected)

    return replayed("a run", disk, calls, folder, look, draw, 0 if short else 5,
                    40 if short else 1)


def recorded(root: Path, work: Callable[[], object], at: Path = Path("/")
             ) -> tuple[list[Call], Disk]:
    """The calls of some work below a folder, and the folder as it was before. at: where it is
    done."""
    disk = Disk(root)
    with tempfile.TemporaryFile() as log:
        def noted() -> None:
            with recording(root, log.fileno()):
                work()

        forked(noted, at)
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
