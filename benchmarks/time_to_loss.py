"""Tiny Shakespeare by characters: how soon the public reference's validation loss is reached.

usage: python benchmarks/time_to_loss.py [PATH/tinyshakespeare.txt] [--rounds=N] [--arms=ARM]

Whole processes, from `python train.py` to their exit, on a prepared dataset: our recipe
(configs/shakespeare-char.yaml) and the reference's (configs/shakespeare-reference.yaml, 2,000
steps), in turn, another seed each round. The loss is over the whole validation split, the last
tenth of the text. The limit is the time that our recipe's arithmetic takes at the speed of a
1024 x 1024 product. Writes benchmarks/results/time_to_loss.json.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.runs import Outcome, choose, run_script, shakespeare, train  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.machine.hardware import measure_matmul_flops  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "time_to_loss.json"
ARMS = {"ours": "configs/shakespeare-char.yaml", "reference": "configs/shakespeare-reference.yaml"}
LOSS = 1.8857  # the public reference's after its 2,000 steps
GOAL, ROUNDS = 6.0, 5


def main(argv: list[str]) -> None:
    """Prepare, train in turn, report."""
    chosen = choose(argv, list(ARMS), ROUNDS)
    text = shakespeare(chosen)
    machine, peaks = choose_machine(dtype="float32"), []
    found: dict[str, list[Outcome]] = {arm: [] for arm in chosen.arms}
    with tempfile.TemporaryDirectory() as folder:
        run_script(Path(folder), "data/prepare.py", str(text.resolve()), "tokenizer=char",
                   "out=text")
        for seed in range(1, chosen.rounds + 1):
            peaks.append(measure_matmul_flops(machine.device, machine.dtype))
            for arm in chosen.arms:
                outcome = train(Path(folder), ARMS[arm], f"{arm}-{seed}", "data.dataset=text",
                                f"run.seed={seed}")
                found[arm].append(outcome)
                print(f"seed {seed}  {arm:9}  {outcome.seconds:6.1f} s  {outcome.tokens:9,} tokens"
                      f"  validation loss {outcome.loss:.4f}", flush=True)
    if chosen.is_whole:
        report(found, statistics.median(peaks), machine.describe())


def report(found: dict[str, list[Outcome]], peak: float, hardware: str) -> None:
    """Medians, the ratio, and whether every seed arrived."""
    seconds = {arm: statistics.median(o.seconds for o in outcomes)
               for arm, outcomes in found.items()}
    worst = max(outcome.loss for outcome in found["ours"])
    ratio, limit = seconds["reference"] / seconds["ours"], found["ours"][0].flops / peak
    print(f"ours {seconds['ours']:.1f} s, reference {seconds['reference']:.1f} s: {ratio:.2f} x "
          f"(goal {GOAL}); worst loss of ours {worst:.4f} (goal {LOSS}); limit {limit:.1f} s")
    result: dict[str, Any] = {
        "hardware": hardware, "seconds": seconds, "ratio": ratio, "goal": GOAL,
        "worst_loss": worst, "loss_goal": LOSS, "limit_seconds": limit, "peak_flops": peak,
        "runs": {arm: [asdict(o) for o in outcomes] for arm, outcomes in found.items()}}
    write_json(RESULTS, result)


if __name__ == "__main__":
    run_command(main)
