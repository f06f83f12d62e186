"""Ranks that are killed, stopped or told to stop at random moments, and what becomes of the run.

usage: python benchmarks/rank_faults.py [COUNT [FAULT …]]

Each fault is injected COUNT times (10 unless given) into a run of two processes, replicated and
sharded in turn, with parallel.timeout_seconds=5. Then the same command is given again. What counts:
the exit codes; seconds until all had left, the median and the longest; whether one line told of it;
whether anything was left behind; whether the final weights are, bit by bit, those of a run that
nobody disturbed. A row of docs/faults.md is printed for each fault.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.launched import BASE, Launched, prepare, wait_for_step, weights_of  # noqa: E402

STEPS, TIMEOUT = 20, 5
SETTINGS = (*BASE, f"train.steps={STEPS}", f"parallel.timeout_seconds={TIMEOUT}")
LAYOUTS = {"replicated": "parallel.replicate=2", "sharded": "parallel.shard=2"}
# Name: (rank, signal, exit codes of the ranks; None: it cannot leave)
SIGNALS: dict[str, tuple[int, signal.Signals, list[int | None]]] = {
    "SIGKILL to rank 1": (1, signal.SIGKILL, [1, -9]),
    "SIGKILL to rank 0": (0, signal.SIGKILL, [-9, 1]),
    "SIGSTOP to rank 1": (1, signal.SIGSTOP, [1, None]),
    "SIGSTOP to rank 0": (0, signal.SIGSTOP, [None, 1]),
    "SIGTERM to rank 1": (1, signal.SIGTERM, [75, 75]),
    "SIGINT to rank 0": (0, signal.SIGINT, [75, 75]),
    "SIGUSR1 to rank 1": (1, signal.SIGUSR1, [75, 75]),
}
NOT_A_NUMBER = "NaN in a batch of rank 1"


def inject(fault: str, folder: Path, settings: tuple[str, ...], draw: random.Random
           ) -> tuple[float, str | None]:
    """(seconds until all had left, what was not as it has to be)"""
    run = next(word for word in settings if word.startswith("run.name="))[9:]
    spoiled = {1: f"nan:{draw.randrange(2, STEPS)}"} if fault == NOT_A_NUMBER else {}
    rank, number, expected = SIGNALS.get(fault, (0, None, [1, 1]))
    with Launched(folder, settings, faults=spoiled) as launched:
        began = time.monotonic()
        if number is not None:
            wait_for_step(folder / "runs" / run, draw.randrange(1, STEPS - 5), launched)
            time.sleep(draw.random() / 5)
            began = time.monotonic()
            launched.send(rank, number)
        without = (rank,) if number == signal.SIGSTOP else ()
        codes, seconds = launched.codes(90, without), time.monotonic() - began
        words, left = launched.last_words(), launched.left_over(without)
    if codes != expected or len(words) != 1 or left:
        return seconds, f"exit codes {codes}, {words}, left over: {left}"
    return seconds, None


def finish(folder: Path, settings: tuple[str, ...]) -> bytes:
    """The same command, undisturbed; the final weights."""
    with Launched(folder, settings) as launched:
        if any(launched.codes(180)):
            raise SystemExit(launched.said(0))
    return weights_of(folder, settings)


def main() -> None:
    """Inject, and print a row for each fault."""
    count = int(sys.argv[1]) if sys.argv[1:] else 10
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        whole = {layout: finish(folder, (*SETTINGS, setting, f"run.name={layout}"))
                 for layout, setting in LAYOUTS.items()}
        for fault in sys.argv[2:] or [*SIGNALS, NOT_A_NUMBER]:
            took, bad, alike = [], [], 0
            for i in range(count):
                layout = list(LAYOUTS)[i % len(LAYOUTS)]
                settings = (*SETTINGS, LAYOUTS[layout], f"run.name={fault}-{i}".replace(" ", "-"))
                seconds, problem = inject(fault, folder, settings, draw)
                took.append(seconds)
                bad += [problem] if problem else []
                alike += finish(folder, settings) == whole[layout]
            until = "" if fault == NOT_A_NUMBER else (
                f"{statistics.median(took):.1f} s, at most {max(took):.1f} s")
            print(f"| {fault} | {count} | {count - len(bad)} | {until} | {alike} |", flush=True)
            for problem in bad:
                print(f"  {problem}", flush=True)


if __name__ == "__main__":
    main()
