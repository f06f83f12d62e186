"""A real run: the quick start's corpus, `bpe:4096`, model.depth=8, three minutes by the clock.

prepare.py and train.py as a user calls them, in a folder of their own; of the run's metrics.jsonl
the loss curve and where the time went; from the profiler, over a hundred steps in its middle, the
share of time in which the GPU has nothing to do.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.bench import Bench, longest
from benchmarks.on_gpu.results import ROOT, Results
from benchmarks.runs import events, run_script

MINUTES, FIRST, STEPS = 3.0, 150, 100  # profiled: so many steps from the FIRST on
GOAL_IDLE = 0.03


def measure(bench: Bench, results: Results) -> None:
    """One run, whole."""
    results.measure("run", lambda: run(bench))


def run(bench: Bench) -> dict[str, Any]:
    """Prepare, train, read what was logged."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return trained(bench, Path(folder))
        finally:
            os.chdir(before)


def trained(bench: Bench, folder: Path) -> dict[str, Any]:
    """train.py in this process, so that it can be watched."""
    start = time.monotonic()
    run_script(folder, "data/prepare.py", *corpus(bench, folder), "out=corpus")
    prepared = time.monotonic()
    import train
    shape = bench.choose(
        ["model.depth=8", f"train.max_minutes={MINUTES}", "eval.every_steps=500"],
        ["model.n_layer=1", "model.n_embd=32", "model.n_head=2", "model.block_size=32",
         "train.steps=12", "train.batch_size=4", "eval.every_steps=6"])
    with watched(bench) as seen:
        train.main(["data.dataset=corpus", "run.name=run", f"run.device={bench.device.type}",
                    *shape])
    return told(events(folder / "runs/run"), folder / "runs/run", {
        "prepare": prepared - start, "train.py": time.monotonic() - prepared}) | seen


def corpus(bench: Bench, folder: Path) -> list[str]:
    """What prepare.py is called with."""
    if not bench.tiny:
        return [str(ROOT / "configs/data/stdlib.yaml"), "tokenizer=bpe:4096"]
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 500)
    return ["text.txt", "tokenizer=byte"]


@contextlib.contextmanager
def watched(bench: Bench) -> Iterator[dict[str, Any]]:
    """Profile some steps of whatever is trained meanwhile; what was seen, in the end, when to look
    through it takes no time from the run."""
    from torch.profiler import ProfilerActivity, profile

    from gpt.training.step import Step
    on_gpu = bench.device.type == "cuda"
    first, steps = bench.choose((FIRST, STEPS), (3, 3))
    profiler = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
    seen: dict[str, Any] = {}
    count, apply = 0, Step.apply

    def counted(step: Step) -> None:
        nonlocal count
        apply(step)
        count += 1
        if count == first:
            profiler.start()
        elif count == first + steps:
            bench.wait()
            profiler.stop()

    Step.apply = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Step.apply = apply  # type: ignore[method-assign]
    assert count >= first + steps, f"{count} steps are too few to look at {steps} from {first} on"
    seen.update(longest(profiler, steps, on_gpu), goal_idle_share=GOAL_IDLE)


def told(lines: list[dict[str, Any]], run: Path, phases: dict[str, float]) -> dict[str, Any]:
    """The curve, thinned, and the seconds of each phase."""
    steps = [line for line in lines if line["event"] == "train"]
    scores = [line for line in lines if line["event"] == "eval"]
    seconds = [line["tokens"] / line["tokens_per_second"] if line["step"] == 1 else
               (line["tokens"] - before["tokens"]) / line["tokens_per_second"]
               for before, line in zip([steps[0], *steps], steps, strict=False)]
    end = lines[-1]["elapsed_seconds"]
    phases |= {"first step": seconds[0], "other steps": sum(seconds[1:]),
               "evaluating, saving and the rest": end - sum(seconds)}
    return {"validation_loss": scores[-1]["val_loss"],
            "bits_per_byte": scores[-1]["val_bits_per_byte"], "tokens": steps[-1]["tokens"],
            "steps": steps[-1]["step"],
            "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps),
            "mfu": statistics.median(line["mfu"] for line in steps),
            "seconds_by_phase": {name: round(value, 2) for name, value in phases.items()},
            "curve": [[line["step"], round(line["elapsed_seconds"], 2), round(line["loss"], 4)]
                      for line in steps[::max(1, len(steps) // 60)]],
            "config": (run / "config.yaml").read_text(encoding="utf-8")}
