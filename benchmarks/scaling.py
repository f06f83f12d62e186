"""Training in several processes: how much faster two are than one, and what they send each other.

usage: python benchmarks/scaling.py [--rounds=N]

Speed: nanoGPT's model and steps for Shakespeare, 10.8 M parameters and 64 sequences of 256 tokens,
with GPT-2's layers, in float32, a thread for each process. "ours" in one process and in two (DDP,
and FSDP2 over both); the peer is the hand-written GPT-2 in a plain DDP loop
(benchmarks/plain_gpt.py); the limit is two processes that tell each other nothing. Efficiency is
the speed of two over twice that of one in the same round. The same two processes take all arms in
turn, a step of each, and one of them waits where one works alone; figures are medians over rounds.

Traffic: bytes that a process hands to collectives in a step, for each layout, by those counted in
torch.distributed, over what the calculator (gpt/parallel/traffic.py) says is the least: rings, and
nothing twice. Writes benchmarks/results/scaling.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.runs import choose, no_more  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from tests.parallel.processes import free_port  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SHAPE: dict[str, Any] = {
    "vocab_size": 256, "block_size": 256, "n_layer": 6, "n_head": 6, "n_kv_head": 6, "n_embd": 384,
    "position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True,
    "tie_embeddings": True, "qk_norm": False}
SEQUENCES, MICRO_BATCH = 64, 4
GOAL, TRAFFIC_GOAL = 0.9, 1.05
# Arm: (processes that work, sizes of their layout; none: each alone).
ARMS: dict[str, tuple[int, dict[str, int]]] = {
    "ours, one": (1, {}), "ours, DDP 2": (2, {"replicate": 2}), "ours, FSDP 2": (2, {"shard": 2}),
    "limit, two alone": (2, {}), "peer, one": (1, {}), "peer, DDP 2": (2, {"replicate": 2})}
LAYOUTS: dict[str, dict[str, int]] = {
    "DDP 2": {"replicate": 2}, "DDP 4": {"replicate": 4}, "FSDP 2": {"shard": 2},
    "FSDP 4": {"shard": 4}, "HSDP 2 x 2": {"replicate": 2, "shard": 2}, "TP 2": {"tensor": 2},
    "TP 2 x FSDP 2": {"tensor": 2, "shard": 2}, "CP 2": {"context": 2}, "PP 2": {"pipeline": 2}}


def main(argv: list[str]) -> None:
    """Without a worker's words: all arms in turn, then traffic, then the report."""
    if argv[:1] == ["worker"]:
        from benchmarks.scaling_worker import work
        print(json.dumps(work(*map(json.loads, argv[1:]))))
        return
    chosen = choose(argv, [*ARMS], rounds=7)
    no_more(chosen)
    speeds = launched(2, "speeds", chosen.arms, chosen.rounds)
    traffic = {}
    if chosen.is_whole:
        for name, sizes in LAYOUTS.items():
            processes = 4 if any(size == 4 for size in sizes.values()) or len(sizes) > 1 else 2
            for optimizer in ("adamw", "muon"):
                traffic[f"{name}, {optimizer}"] = launched(processes, "traffic", sizes, optimizer)
    report(speeds, traffic, chosen.is_whole)


def launched(processes: int, *words: Any) -> Any:
    """What rank 0 of so many workers prints, each of which is given these words."""
    port, started = free_port(), []
    for rank in range(processes):
        told = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "OMP_NUM_THREADS": "1",
                       **{name: str(value) for name, value in told.items()}}
        started.append(subprocess.Popen(
            [sys.executable, __file__, "worker", *map(json.dumps, words)],
            stdout=subprocess.PIPE, text=True, env=environment))
    said = [process.communicate(timeout=1800)[0] for process in started]
    return json.loads(said[0].splitlines()[-1])


def report(speeds: dict[str, list[float]], traffic: dict[str, dict[str, float]],
           write: bool) -> None:
    """A line per figure, and the file."""
    from gpt.machine.device import choose_machine
    medians = {arm: statistics.median(found) for arm, found in speeds.items()}
    efficiency = {}
    for arm, found in speeds.items():
        one = speeds.get("peer, one" if arm.startswith("peer") else "ours, one", found)
        low, middle, high = efficiency[arm] = np.quantile(
            np.divide(found, one) / ARMS[arm][0], [0.25, 0.5, 0.75]).tolist()
        print(f"{arm:18} {medians[arm]:8,.0f} tokens/s  efficiency {middle:.3f} "
              f"(half of the rounds: {low:.3f} to {high:.3f}; goal {GOAL})")
    for name, sent in traffic.items():
        print(f"{name:22} {sent['counted'] / 2**20:8.2f} MiB a step, least "
              f"{sent['least'] / 2**20:8.2f}: {sent['counted'] / sent['least']:.3f} "
              f"(goal {TRAFFIC_GOAL})")
    if write:
        write_json(RESULTS, {
            "hardware": choose_machine(dtype="float32").describe(), "torch": torch.__version__,
            "when": time.strftime("%Y-%m-%d"), "tokens_per_second": medians, "all": speeds,
            "efficiency_quartiles": efficiency, "traffic_bytes": traffic})


if __name__ == "__main__":
    run_command(main)
