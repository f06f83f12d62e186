"""Row 1: one run is killed again and again, at any moment and inside a save, and goes on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from tests.faults.rows import runs
from tests.faults.tally import Tally
from tests.faults.warm import Started, start


def run(short: bool, folder: Path) -> Tally:
    """50 kills of one run, 20 of them and more inside a save; short: 4 kills, 2 of them."""
    kills, inside = (4, 2) if short else (50, 20)
    # More than enough, or the run would be over before it was killed so often.
    steps, tally = (60 if short else 20) * kills, Tally()
    runs.dataset(folder)
    whole = runs.train(folder, "whole", steps)
    assert whole.code == 0, whole.err
    draw, saves = random.Random(0), 0
    while tally.tries < kills or saves < inside:
        in_save = saves < inside and tally.tries % 2 == 1
        started = start("train.py", *runs.words("killed", steps), folder=folder)
        was_in_save = _kill(started, folder / "runs" / "killed", in_save, draw)
        done = started.wait()
        if done.code == 0:
            break
        saves += was_in_save
        tally.expect(None if done.code == -signal.SIGKILL else f"{done.code}: {done.last}")
    last = runs.train(folder, "killed", steps)
    expected = runs.outcome(folder / "runs" / "whole")
    if last.code or tally.tries < kills:
        problem: str | None = f"{tally.tries} kills, then {last.code}: {last.last}"
    else:
        problem = runs.different(runs.outcome(folder / "runs" / "killed"), expected)
    left = [path.name for path in (folder / "runs" / "killed").rglob("*.tmp-*")]
    if problem or left:  # each kill may be the one
        tally.lost = [problem or f"left over: {left}"] * tally.tries
    tally.notes.append(f"{saves} of them inside a save")
    return tally


def _kill(started: Started, run: Path, in_save: bool, draw: random.Random) -> bool:
    """SIGKILL after some steps: at once, or when the next save has begun. Whether it was in one."""
    checkpoints = run / "checkpoints"
    beginning = _newest(run)
    wanted = beginning + draw.randrange(1, 12)
    while not started.is_over and _newest(run) < wanted:
        time.sleep(0.002)
    if in_save:
        while not started.is_over and not any(checkpoints.glob("step-*.tmp-*")):
            pass
        time.sleep(draw.random() * 0.01)
    else:
        time.sleep(draw.random() * 0.05)
    started.kill()
    while not started.is_over:
        time.sleep(0.001)
    return any(checkpoints.glob("step-*.tmp-*"))


def _newest(run: Path) -> int:
    """The last step that was logged."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        if line.startswith(b'{"event": "train", "step": ') and line.endswith(b"}"):
            return int(line.split(b",")[1].split()[-1])
    return 0
