"""How well `--dry-run` predicts a run's time and peak memory, on a grid of shapes and optimizers.

usage: python benchmarks/dry_run.py

Each case is predicted and trained in turn, three times, each by train.py in a process of its own,
on random text; medians are compared. Writes benchmarks/results/dry_run.json.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.runs import events, run_script  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "dry_run.json"
GOAL = 0.10
ROUNDS = 3
CORPUS_CHARACTERS = 400_000
COMMON = ("data.dataset=text", "model.n_head=4", "eval.max_tokens=20_000", "run.compile=false")
GRID = [
    {"model.n_layer": 2, "model.n_embd": 128, "model.block_size": 64, "train.batch_size": 16,
     "optim.name": "muon", "train.steps": 400},
    {"model.n_layer": 4, "model.n_embd": 128, "model.block_size": 256, "train.batch_size": 8,
     "optim.name": "muon", "train.steps": 150, "eval.every_steps": 30},
    {"model.n_layer": 4, "model.n_embd": 256, "model.block_size": 256, "train.batch_size": 8,
     "optim.name": "adamw", "train.steps": 80},
    {"model.n_layer": 6, "model.n_embd": 384, "model.block_size": 256, "train.batch_size": 8,
     "optim.name": "adamw", "train.steps": 30, "checkpoint.every_steps": 10},
    {"model.n_layer": 6, "model.n_embd": 384, "model.block_size": 512, "train.batch_size": 16,
     "optim.name": "muon", "train.steps": 12, "train.micro_batch_size": 4},
    {"model.n_layer": 8, "model.n_embd": 512, "model.block_size": 256, "train.batch_size": 8,
     "optim.name": "muon", "train.steps": 12, "optim.ema_half_life": 10_000},
]


def main() -> None:
    """Predict, train, compare."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        here, draw = Path(folder), random.Random(0)
        (here / "text.txt").write_text("".join(
            draw.choices("abcdefghijklmnopqrstuvwxyz .,\n", k=CORPUS_CHARACTERS)))
        run_script(here, "data/prepare.py", "text.txt", "tokenizer=byte", "out=text")
        for number, case in enumerate(GRID):
            overrides = [*COMMON, *(f"{field}={value}" for field, value in case.items())]
            rows.append({"case": case} | compare(here, overrides, f"case-{number}"))
            print(", ".join(f"{k.split('.')[1]} {v}" for k, v in case.items()) + ": " + "; ".join(
                f"{name} {rows[-1][name]['predicted']:.1f} predicted, "
                f"{rows[-1][name]['measured']:.1f} measured, {rows[-1][name]['error']:+.1%}"
                for name in ("seconds", "MiB")), flush=True)
    worst = {name: max(abs(row[name]["error"]) for row in rows) for name in ("seconds", "MiB")}
    print(f"largest error: {worst['seconds']:.1%} of the time, {worst['MiB']:.1%} of the memory "
          f"(goal {GOAL:.0%})")
    write_json(RESULTS, {"hardware": choose_machine().describe(), "goal": GOAL, "rounds": ROUNDS,
                         "worst": worst, "cases": rows})


def compare(folder: Path, overrides: list[str], name: str) -> dict[str, Any]:
    """By figure: the medians of both, and the error as a share of what was measured."""
    rounds = []
    for turn in range(ROUNDS):
        run = f"{name}-{turn}"
        arguments = [*overrides, f"run.name={run}"]
        rounds.append((predicted(folder, arguments), measured(folder, arguments, run)))
    found = {}
    for figure in rounds[0][0]:
        before, after = (statistics.median(outcome[figure] for outcome in outcomes)
                         for outcomes in zip(*rounds, strict=True))
        found[figure] = {"predicted": before, "measured": after, "error": before / after - 1}
    return found


def predicted(folder: Path, overrides: list[str]) -> dict[str, float]:
    """What --dry-run says."""
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *overrides, "--dry-run"],
                          cwd=folder, capture_output=True, text=True, check=True)
    time = re.search(r"time +([\d.,]+) minutes", done.stdout)
    memory = re.search(r"peak memory +([\d,]+) MiB", done.stdout)
    assert time and memory, done.stdout
    return {"seconds": 60 * float(time[1].replace(",", "")),
            "MiB": float(memory[1].replace(",", ""))}


def measured(folder: Path, overrides: list[str], name: str) -> dict[str, float]:
    """What the run took, and the most memory that its process ever had."""
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *overrides], cwd=folder,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, overrides
    return {"seconds": events(folder / "runs" / name)[-1]["elapsed_seconds"],
            "MiB": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    run_command(lambda argv: main())
