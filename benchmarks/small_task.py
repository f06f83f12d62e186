"""What fine-tuning learns from 62 examples without being told how long, and from one epoch of them.

usage: python benchmarks/small_task.py [BASE] [FOLDER]

BASE: an instruct model, HuggingFaceTB/SmolLM2-135M-Instruct by default. It learns to write a
sentence about a book as a reference, with all weights and with LoRA, by finetune.py's own choice
and in one epoch of 32 examples a step; 30 other sentences validate it. FOLDER, build/small_task by
default, keeps the runs: the same command goes on after an interruption. 12 minutes on two cores.
Writes benchmarks/results/small_task.json.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "small_task.json"
BASE, FOLDER = "HuggingFaceTB/SmolLM2-135M-Instruct", ROOT / "build" / "small_task"
ONE_EPOCH = ("train.epochs=1", "train.batch_size=32")
ARMS = {"full, one epoch": ("finetune.method=full", *ONE_EPOCH), "full": ("finetune.method=full",),
        "lora, one epoch": ("finetune.method=lora", *ONE_EPOCH), "lora": ("finetune.method=lora",)}
TRAIN, VALIDATE = 62, 30
FIRST = """Ada Alan Grace Linus Margaret Donald Barbara Edsger Radia Ken Frances Dennis Hedy John
    Joan Claude Katherine Niklaus Sophie Tim"""
LAST = """Moreau Okafor Lindqvist Tanaka Rossi Novak Silva Haddad Meyer Kowalski Duarte Nilsen
    Petrov Gruber Costa Iversen Yilmaz Laurent Adeyemi Sato"""
TOPICS = """tides bees maps iron rivers chess snow ports wool glass bells moths clouds roads salt"""


def main(argv: list[str]) -> None:
    """Every arm, then a line for each."""
    base, folder = argv[0] if argv else BASE, Path(argv[1]) if argv[1:] else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rows = examples()
    for name, some in (("train", rows[:TRAIN]), ("val", rows[TRAIN:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    figures = {arm: train(arm, base, folder) for arm in ARMS}
    for arm, found in figures.items():
        print(f"{arm:16} {found['steps']:4} steps, best at {found['best_step']:4}: loss "
              f"{found['before']:.2f} → {found['val_loss']:.2f} nats per token, answers right "
              f"{found['exact_match']:.0%}, {found['seconds']:.0f} s")
    from gpt.machine.device import choose_machine
    write_json(RESULTS, {"hardware": choose_machine(dtype="float32").describe(),
                         "base": Path(base).name, "arms": figures})


def examples() -> list[dict[str, str]]:
    """Sentences and references, each author once."""
    firsts, lasts, topics = FIRST.split(), LAST.split(), TOPICS.split()
    rng, rows, seen = random.Random(0), list[dict[str, str]](), set[tuple[str, str]]()
    while len(rows) < TRAIN + VALIDATE:
        first, last, topic = rng.choice(firsts), rng.choice(lasts), rng.choice(topics)
        year = rng.randint(1950, 2020)
        if (first, last) not in seen:
            seen.add((first, last))
            rows.append({"prompt": f"{first} {last} wrote a book about {topic} in {year}.",
                         "completion": f"{last.upper()}, {first[0]}. ({year}): on {topic}"})
    return rows


def train(arm: str, base: str, folder: Path) -> dict[str, Any]:
    """What its evaluations say, before and of the best checkpoint."""
    name = arm.replace(", ", "-").replace(" ", "-")
    subprocess.run([sys.executable, ROOT / "finetune.py", f"finetune.from={base}",
                    f"finetune.data={folder}/train.jsonl", f"finetune.val_data={folder}/val.jsonl",
                    f"run.name={name}", f"run.out_dir={folder}/runs", *ARMS[arm]], check=True)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    scored = [event for event in map(json.loads, lines) if event["event"] == "eval"]
    best = min(scored[1:], key=lambda event: event["val_loss"])
    return {"before": scored[0]["val_loss"], "val_loss": best["val_loss"],
            "exact_match": best["val_exact_match"], "best_step": best["step"],
            "steps": scored[-1]["step"], "seconds": scored[-1]["elapsed_seconds"]}


if __name__ == "__main__":
    run_command(main)
