"""Row 3: the disk is full after so many bytes of a save."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.faults.failing_calls import failing
from tests.faults.rows import runs
from tests.faults.rows.failing import outcome
from tests.faults.rows.saves import (
    SCENARIOS,
    Files,
    Scenario,
    goes_on,
    is_old_or_new,
    scratch,
    undisturbed,
)
from tests.faults.tally import Tally
from tests.faults.warm import Done, forked

SAID = re.compile(r"[\d,]+ bytes are needed, [\d,]+ are free")


def run(short: bool, folder: Path) -> Tally:
    """A save that finds room for some of its bytes; then commands on a disk that is full."""
    tally, draw = Tally(), random.Random(0)
    for scenario in SCENARIOS[1:2] if short else SCENARIOS:
        known = undisturbed(scenario)
        size = sum(map(len, known[scenario.new].values()))
        rooms = range(0, size, size // 12) if short else sorted(
            {*range(64), *(draw.randrange(size) for _ in range(150)), size - 1})
        with scratch() as root:
            for room in rooms:
                tally.expect(_try(scenario, known, root, room))
    tally.add(_commands(folder, draw, 2 if short else 12))
    return tally


def _try(scenario: Scenario, known: dict[int, Files], root: Path, room: int) -> str | None:
    shutil.rmtree(root / "run", ignore_errors=True)
    folder = scenario.start(root)

    def disturbed() -> dict[str, str]:
        with failing(root, (), error=errno.ENOSPC, room=room):
            return outcome(lambda: scenario.save(folder))

    said = forked(disturbed)
    problem = (_wrongly_told(said["error"], root)
               or is_old_or_new(scenario, folder, known, not said["error"])
               or goes_on(scenario, folder, known))
    return problem and f"{scenario.name}: room for {room} bytes: {problem} ({said['error']})"


def _wrongly_told(text: str, root: Path) -> str | None:
    if not SAID.search(text):
        return "it is not said how many bytes are needed and free"
    return None if str(root) in text else "no path is named"


def _commands(folder: Path, draw: random.Random, count: int) -> Tally:
    """train.py, whose run lies on a small disk that is nearly full when it goes on."""
    tally = Tally()
    with small_disk(folder / "disk", 4 << 20) as disk:
        if disk is None:
            tally.notes.append("no small disk may be mounted here: without whole commands")
            return tally
        runs.dataset(folder)
        runs.in_two_parts(folder, "whole")
        whole = runs.outcome(folder / "runs" / "whole")
        for number in range(count):
            out = f"run.out_dir={disk}"
            name = f"run-{number}"
            assert runs.train(folder, name, 6, out).code == 0
            left = draw.randrange(0, 80_000) if number else 0
            filler = _fill(disk, left)
            done = runs.train(folder, name, 12, out)
            problem = _not_full(done, disk) if done.code or left == 0 else None
            filler.unlink()
            again = runs.train(folder, name, 12, out)
            problem = problem or (None if again.code == 0 else again.last) or runs.different(
                runs.outcome(disk / name), whole)
            if any((disk / name).rglob("*.tmp-*")):
                problem = problem or "something is left over"
            tally.expect(problem and f"a command with {left} bytes free: {problem}")
            shutil.rmtree(disk / name)
    return tally


def _not_full(done: Done, disk: Path) -> str | None:
    if done.code == 1 and done.is_one_line and str(disk) in done.last:
        return None
    return f"code {done.code}: {done.err[-300:]}"


def _fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = disk / "filler"
    size = shutil.disk_usage(disk).free - left
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    return filler


@contextlib.contextmanager
def small_disk(place: Path, size: int, *options: str) -> Iterator[Path | None]:
    """A file system of its own in memory; None where none may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", str(place)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
