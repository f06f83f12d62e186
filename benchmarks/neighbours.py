"""What each command does beside another process on the same cores.

usage: python benchmarks/neighbours.py [--rounds=N] [--arms=ours,spinning]

Arms: ours, and torch's threads as they are without gpt/machine/neighbours.py, which spin. A case is
a command, and what runs beside it, by the same arm. Training and sampling are looked at for six
seconds, from when all of a case are at work; evaluating and preparing are timed as whole commands.
A fair share of two processes is half of the speed alone; the goals are 0.95 of the speed alone that
spinning threads have, and 0.85 of a fair share of that beside others. Arms take turns in each case;
medians. Writes benchmarks/results/neighbours.json.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.runs import ROOT, choose, no_more, run_script
from gpt.errors import run_command
from gpt.files import write_json
from gpt.machine.hardware import cpu_name

RESULTS = Path(__file__).parent / "results" / "neighbours.json"
ROUNDS, WINDOW = 3, 6.0
ARMS = ["ours", "spinning"]
GOAL_ALONE, GOAL_BESIDE = 0.95, 0.85
SHAPE = ["data.dataset=corpus", "model.block_size=256", "model.n_layer=4", "model.n_head=4",
         "model.n_embd=128", "model.tie_embeddings=true", "train.batch_size=8", "run.compile=false",
         "eval.every_steps=null", "checkpoint.every_steps=null"]
TINY = [*SHAPE, "model.block_size=64", "model.n_layer=2", "model.n_head=2", "model.n_embd=32"]
SPINNING = ("import runpy, sys; sys.path.insert(0, {0!r}); from gpt.machine import neighbours; "
            "neighbours.heed_other_processes = lambda: None; sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")


@dataclass(frozen=True)
class Job:
    """A command. file: what grows while it works, by lines or bytes; None: its end counts."""

    script: str
    arguments: list[str]
    file: str | None = None

    def done(self, folder: Path) -> int:
        """How much it has done by now."""
        assert self.file is not None
        path = folder / self.file
        if path.suffix != ".jsonl":
            return path.stat().st_size
        return path.read_text().count("\n") if path.exists() else 0


def training(shape: list[str]) -> Job:
    """Counted in steps."""
    return Job("train.py", [*shape, "train.steps=1000000", "run.name={n}"],
               "runs/{n}/metrics.jsonl")


SAMPLE = Job("sample.py", ["runs/base", "--prompt", "def ", "--max-new-tokens", "1000000",
                           "--min-new-tokens", "1000000", "--slide", "--temperature", "0"],
             "{n}.txt")  # counted in bytes of text, which is the same each time
EVALUATE = Job("gpt/__main__.py", ["evaluate", "runs/base"])
PREPARE = Job("data/prepare.py", ["text.txt", "tokenizer=bpe:2048", "out=made/{n}"])
TRAIN, TINY_TRAIN = training(SHAPE), training(TINY)
BUSY = Job("-c", ["while True: pass"])
CASES: dict[str, tuple[Job, Job | None]] = {
    "train": (TRAIN, None), "train, train": (TRAIN, TRAIN), "train, sample": (TRAIN, SAMPLE),
    "train, busy core": (TRAIN, BUSY),
    "tiny train": (TINY_TRAIN, None),
    "sample": (SAMPLE, None), "sample, sample": (SAMPLE, SAMPLE), "sample, train": (SAMPLE, TRAIN),
    "sample, busy core": (SAMPLE, BUSY),
    "evaluate": (EVALUATE, None), "evaluate, train": (EVALUATE, TRAIN),
    "prepare": (PREPARE, None), "prepare, train": (PREPARE, TRAIN)}


def main(argv: list[str]) -> None:
    """Every case, arm by arm, then the report."""
    chosen = choose(argv, ARMS, ROUNDS)
    no_more(chosen)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(folder := Path(name))
        for case, (job, other) in CASES.items():
            rounds = [[rate(job, other, arm, folder) for arm in chosen.arms]
                      for _ in range(chosen.rounds)]
            found[case] = {arm: statistics.median(rates)
                           for arm, *rates in zip(chosen.arms, *rounds, strict=True)}
            print(told(case, found), flush=True)
    if chosen.is_whole:
        write_json(RESULTS, {
            "hardware": f"{cpu_name()}, {os.cpu_count()} cores", "rounds": chosen.rounds,
            "unit": "per second: steps, bytes of text, or whole commands; medians",
            "goals": {"alone": GOAL_ALONE, "beside": GOAL_BESIDE}, "cases": found})


def told(case: str, found: dict[str, dict[str, float]]) -> str:
    """A line: each arm's speed, and what share of the spinning threads' speed alone it is."""
    alone = found[case.partition(",")[0]]
    reference = alone.get("spinning", max(alone.values())) / (2 if "," in case else 1)
    return f"{case:24}" + "".join(f"{arm:>10} {rate:9.3f} ({rate / reference:5.2f})"
                                  for arm, rate in found[case].items())


def prepare(folder: Path) -> None:
    """Text, a dataset, and a run to sample from and to evaluate."""
    text = "".join(path.read_text(encoding="utf-8", errors="replace")
                   for path in sorted(Path(os.__file__).parent.glob("*.py")))
    (folder / "text.txt").write_text(text)
    run_script(folder, "data/prepare.py", "text.txt", "tokenizer=bpe:4096", "out=corpus")
    run_script(folder, "train.py", *SHAPE, "train.steps=50", "run.name=base")


def rate(job: Job, other: Job | None, arm: str, folder: Path) -> float:
    """What a command does in a second beside another one."""
    with contextlib.ExitStack() as stack:
        if other is not None:
            at_work(other := stack.enter_context(started(other, arm, folder))[0], folder)
        start = time.monotonic()
        job, process = stack.enter_context(started(job, arm, folder))
        if job.file is None:
            if process.wait():
                sys.exit(f"{job.script} {' '.join(job.arguments)} failed")
            return 1 / (time.monotonic() - start)
        at_work(job, folder)
        start, before = time.monotonic(), job.done(folder)
        time.sleep(WINDOW)
        return (job.done(folder) - before) / (time.monotonic() - start)


_numbers = itertools.count()


@contextlib.contextmanager
def started(job: Job, arm: str, folder: Path) -> Iterator[tuple[Job, subprocess.Popen[bytes]]]:
    """The command as a process, with a number of its own for what it writes."""
    number = f"{arm}-{next(_numbers)}"
    job = Job(job.script, [word.replace("{n}", number) for word in job.arguments],
              job.file and job.file.replace("{n}", number))
    python = [sys.executable] + (["-c", SPINNING.format(str(ROOT))] if arm == "spinning" else [])
    command = [sys.executable, "-c"] if job.script == "-c" else [*python, str(ROOT / job.script)]
    with (folder / f"{number}.txt").open("wb") as output:
        process = subprocess.Popen([*command, *job.arguments], cwd=folder, stdout=output,
                                   stderr=subprocess.DEVNULL)
    try:
        yield job, process
    finally:
        process.kill()
        process.wait()


def at_work(job: Job, folder: Path) -> None:
    """Wait until a command does what it is there for, and a little more."""
    deadline = time.monotonic() + 120
    while job.file is not None and job.done(folder) < 2:
        if time.monotonic() > deadline:
            sys.exit(f"{job.script} {' '.join(job.arguments)} does not begin to work")
        time.sleep(0.2)
    time.sleep(1.5)  # others are noticed meanwhile


if __name__ == "__main__":
    run_command(main)
