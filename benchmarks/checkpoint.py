"""How long a save keeps training waiting: ours, torch.save, and torch's own asynchronous save.

usage: python benchmarks/checkpoint.py [--rounds=N]

GPT-2's 124M shape with AdamW's state, 1.5 GB in float32. Each arm is a process of its own, in turn;
it saves SAVES times, trains meanwhile (a second of matrix products on all cores), and tells for
each save how long training waited, until the call returned and, after that second, until weights
could change; and how long until all of it was written. The first one is told apart, since some take
the memory then that they use again later. torch.save writes the same tensors into one file, and
flushes nothing to disk; ours does, and hashes. Writes benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.runs import choose, no_more  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "checkpoint.json"
OURS, WAITING = "ours", "ours, checkpoint.background=false"
TORCH, DISTRIBUTED = "torch.save", "torch.distributed.checkpoint.async_save"
ARMS = (OURS, WAITING, TORCH, DISTRIBUTED)
SAVES, ROUNDS = 4, 2
GOAL = 0.15  # of torch.save

# What saves a step, given its number; what waits until it may change; and until all is written.
Save = tuple[Callable[[int], object], Callable[[], object], Callable[[], object]]


def main(argv: list[str]) -> None:
    """Every arm in turn, then the report. `arm NAME`: that one, in here."""
    if argv[:1] == ["arm"]:
        print(json.dumps(measured(argv[1])))
        return
    chosen = choose(argv, ARMS, ROUNDS)
    no_more(chosen)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in chosen.arms}
    for _ in range(chosen.rounds):
        for arm in chosen.arms:
            done = subprocess.run([sys.executable, __file__, "arm", arm], stdout=subprocess.PIPE,
                                  text=True, check=True)
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    report(found, chosen.is_whole)


def report(found: dict[str, list[dict[str, Any]]], is_whole: bool) -> None:
    """A line per arm, and the file."""
    from gpt.machine.device import choose_machine
    table = {arm: {
        "first_seconds": statistics.median(one["blocked"][0] for one in each),
        "blocked_seconds": statistics.median(s for one in each for s in one["blocked"][1:]),
        "written_seconds": statistics.median(s for one in each for s in one["written"][1:]),
        "peak_bytes": statistics.median(one["peak_bytes"] for one in each),
        "without_saving_bytes": statistics.median(one["before_bytes"] for one in each)}
        for arm, each in found.items()}
    peer = table.get(TORCH, {}).get("blocked_seconds")
    for arm, of in table.items():
        ratio = f", {of['blocked_seconds'] / peer:.3f} of torch.save (goal {GOAL})" if peer else ""
        print(f"{arm:40} training waits {of['blocked_seconds']:.3f} s{ratio}; the first time "
              f"{of['first_seconds']:.3f} s; written after {of['written_seconds']:.1f} s; "
              f"{of['peak_bytes'] / 2**20:,.0f} MiB at most, "
              f"{of['without_saving_bytes'] / 2**20:,.0f} before the first save")
    if is_whole:
        write_json(RESULTS, {"hardware": choose_machine(dtype="float32").describe(),
                             "torch": torch.__version__, "goal": GOAL, "arms": table, "all": found})


def measured(arm: str) -> dict[str, Any]:
    """Seconds of each save, and the most memory of the process before and after them."""
    blocked, written = [], []
    folder = Path(tempfile.mkdtemp())
    try:
        save, may_change, wait = saver(arm, folder)
        before = peak_bytes()
        for step in range(2, SAVES + 2):
            compute(1.0)
            began = time.perf_counter()
            save(step)
            called = time.perf_counter() - began
            compute(1.0)
            asked = time.perf_counter()
            may_change()
            blocked.append(called + time.perf_counter() - asked)
            wait()
            written.append(time.perf_counter() - began)
            for old in folder.rglob("step-*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        return {"blocked": blocked, "written": written, "before_bytes": before,
                "peak_bytes": peak_bytes()}
    finally:
        shutil.rmtree(folder)


def compute(seconds: float) -> None:
    """What a training step does most of."""
    a, end = torch.randn(1024, 1024), time.perf_counter() + seconds
    while time.perf_counter() < end:
        a @ a


def nothing() -> None:
    """What an arm does not have to wait for."""


def peak_bytes() -> int:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def saver(arm: str, folder: Path) -> Save:
    """How an arm saves the same model and optimizer state."""
    from gpt.configuration import ModelConfig, OptimConfig, RunSections
    from gpt.machine.device import choose_machine
    from gpt.model import GPT
    from gpt.optim import Rates, build_optimizer
    from gpt.parallel import Layout
    from gpt.runs.checkpoint import Contents, TrainState
    from gpt.tokenizer import build_tokenizer
    from gpt.training.budget import Budget
    from gpt.training.saves import Saves
    from gpt.training.telemetry import Log
    model = GPT(ModelConfig.model_validate({"preset": "gpt2", "vocab_size": 50_304}))
    optimizer = build_optimizer(model, OptimConfig(), Rates("adamw", 1e-3, 0.02, 0.95, None))
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    tokenizer, layout = build_tokenizer("byte"), Layout(choose_machine(dtype="float32"))

    def contents(state: TrainState) -> Contents:
        return Contents.of(folder, model, optimizer, tokenizer, state, layout)

    if arm in (OURS, WAITING):
        config = RunSections.model_validate({"checkpoint": {"background": arm == OURS}})
        saves = Saves(folder / "checkpoints", config, Budget(10, None), TrainState(), layout, Log(),
                      contents)
        saves.between_steps(TrainState(1))  # as after a run's first step
        saves.wait()
        return lambda step: saves.save(TrainState(step)), saves.before_change, saves.wait
    state = {"/".join(key): tensor for key, tensor in contents(TrainState())}
    if arm == TORCH:
        path = folder / "step-{}.pt"
        return lambda step: torch.save(state, str(path).format(step)), nothing, nothing
    return asynchronous(state, folder)


def asynchronous(state: dict[str, Any], folder: Path) -> Save:
    """torch.distributed.checkpoint's, in a group of one."""
    import torch.distributed as dist
    from torch.distributed.checkpoint import async_save
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    pending: list[Any] = []

    def save(step: int) -> None:
        pending[:] = [async_save(state, checkpoint_id=folder / f"step-{step}")]

    return save, nothing, lambda: pending[0].result()


if __name__ == "__main__":
    run_command(main)
