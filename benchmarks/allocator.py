"""What keeping freed memory is worth on a CPU, where glibc would return it to the kernel.

usage: python benchmarks/allocator.py

Each arm trains the tiny Shakespeare shape (4 layers of width 128) or a wider one (width 384,
context 256) on random tokens in a process of its own, the arms taking turns. Prints and writes
medians of five, in tokens per second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "allocator.json"
ROUNDS = 5
ARMS = {"ours": True, "memory returned": False}  # name: keep freed memory
SHAPES = {  # layers, heads, width, context, batch
    "width 128, context 64": (4, 4, 128, 64, 12),
    "width 384, context 256": (3, 6, 384, 256, 8),
}


def main() -> None:
    """Run all arms and report."""
    result: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        measured: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(ROUNDS):
            for arm in ARMS:
                measured[arm].append(run_arm(arm, shape))
        result[shape] = {arm: statistics.median(values) for arm, values in measured.items()}
        for arm, rate in result[shape].items():
            print(f"{shape:24} {arm:16} {rate:8,.0f} tokens/s  "
                  f"(ours / this: {result[shape]['ours'] / rate:.2f})", flush=True)
    from gpt.files import write_json
    from gpt.machine.device import choose_machine

    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, {"hardware": choose_machine("cpu", "float32").describe(),
                         "unit": "tokens per second, median of 5", "results": result})


def run_arm(arm: str, shape: str) -> float:
    """Tokens per second of one arm, in a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, "--worker", arm, shape], env=environment,
                          capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def worker(arm: str, shape: str) -> None:
    """Train for a moment and print the rate."""
    import torch

    from gpt.batches import MicroBatch
    from gpt.configuration import ModelConfig, OptimConfig
    from gpt.machine.allocator import keep_freed_memory
    from gpt.machine.device import choose_machine
    from gpt.model import GPT
    from gpt.optim import Rates, build_optimizer
    from gpt.training.step import Step

    if ARMS[arm]:
        keep_freed_memory()
    n_layer, n_head, n_embd, block_size, batch_size = SHAPES[shape]
    machine = choose_machine("cpu", "float32")
    model = GPT(ModelConfig(vocab_size=257, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                            block_size=block_size))
    optim = OptimConfig(name="adamw")
    optimizer = build_optimizer(model, optim, Rates.of(optim, model.config, 768))
    step = Step(model, optimizer, machine, grad_clip=1.0)
    tokens = torch.randint(0, 257, (batch_size, block_size))
    rates = []
    end = time.monotonic() + 1.5
    while time.monotonic() < end or len(rates) < 6:
        start = time.monotonic()
        step.gradients([MicroBatch(tokens, tokens, tokens.numel())], lambda: None)
        step.apply()
        rates.append(tokens.numel() / (time.monotonic() - start))
    print(len(rates[3:]) / sum(1 / rate for rate in rates[3:]))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker(*sys.argv[2:])
    else:
        sys.path.insert(0, str(ROOT))
        main()
