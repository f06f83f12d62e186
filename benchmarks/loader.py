"""How long a training step waits for its data, and whether shards stay out of the heap.

usage: python benchmarks/loader.py

Two steps: the smallest that trains something (4 layers of width 128, context 64, batch 12, on this
machine's CPU), and one as on a fast GPU (64 sequences of 1024 tokens every 20 ms, which the loop
sleeps through). Each with windows and, for the second, with packed documents of about 500 tokens;
0, 1 and 2 workers take turns. The shard is a file of random ids; another line tells by how much the
process's own memory (RssAnon) grew while all of it was read.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.batches import (  # noqa: E402
    Batches,
    DocumentRows,
    MicroBatch,
    Order,
    ReadAhead,
    Sequences,
    Shuffled,
    TokenizedText,
    Windows,
)
from gpt.configuration import ModelConfig, OptimConfig  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.allocator import keep_freed_memory  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.model import GPT  # noqa: E402
from gpt.optim import Rates, build_optimizer  # noqa: E402
from gpt.shards import TokenStream  # noqa: E402
from gpt.training.step import Step  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "loader.json"
SHARD_TOKENS = 150_000_000  # 300 MB as uint16
DOCUMENT_TOKENS = 500  # on average, geometric
VOCAB_SIZE, END = 257, 256
WORKERS = (0, 1, 2)
ROUNDS, WARM_UP, STEPS = 5, 10, 60  # steps per round of each arm, the first WARM_UP not counted
GPU_STEP_SECONDS = 0.020


def main() -> None:
    """Run all arms and report."""
    keep_freed_memory()
    machine = choose_machine("cpu", "float32")
    with tempfile.TemporaryDirectory() as folder:
        corpus = random_corpus(Path(folder) / "shard.bin")
        growth = heap_growth(corpus)
        print(f"{2 * SHARD_TOKENS / 1e6:,.0f} MB of shard read: the heap grew by {growth:.1f} MB "
              f"(limit: 0)", flush=True)
        train = training_step()
        small, large = Order(12, 12), Order(64, 64)
        shares = {
            "smallest step, windows": measure(Windows(corpus, 64), small, train),
            "20 ms step, windows": measure(Windows(corpus, 1024), large, sleep),
            "20 ms step, documents": measure(DocumentRows(corpus, 1024, True), large, sleep)}
    for name, arms in shares.items():
        for workers, (waited, whole) in arms.items():
            print(f"{name:24} {workers} workers: waited {1e3 * waited:6.3f} ms of "
                  f"{1e3 * whole:6.2f} ms ({waited / whole:.2%})", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, {
        "hardware": machine.describe(), "shard_megabytes": 2 * SHARD_TOKENS / 1e6,
        "heap_growth_megabytes": growth,
        "unit": f"seconds waited for data and seconds per step, medians of {ROUNDS} rounds",
        "results": {name: {f"{workers} workers": {"waited": waited, "step": whole}
                           for workers, (waited, whole) in arms.items()}
                    for name, arms in shares.items()}})


def random_corpus(path: Path) -> TokenizedText:
    """A shard file of random ids, cut into documents."""
    draw = np.random.default_rng(0)
    ends = np.cumsum(draw.geometric(1 / DOCUMENT_TOKENS, SHARD_TOKENS // DOCUMENT_TOKENS))
    ends = ends[ends <= SHARD_TOKENS] - 1
    ids = draw.integers(0, END, SHARD_TOKENS, dtype=np.uint16)
    ids[ends] = END
    ids.tofile(path)
    starts = np.append(0, ends[ends < SHARD_TOKENS - 1] + 1).astype("<u8")
    stream = TokenStream([np.memmap(path, dtype="<u2", mode="r")], [starts])
    return TokenizedText(stream, VOCAB_SIZE, END, str(path))


def heap_growth(corpus: TokenizedText) -> float:
    """Megabytes by which our own memory grows while every token is read once."""
    windows = Windows(corpus, 1024)
    numbers = np.array_split(np.arange(len(windows)), len(windows) // 64)
    for chosen in numbers[:10]:
        windows.read(chosen)
    before = anonymous_megabytes()
    for chosen in numbers:
        windows.read(chosen)
    return anonymous_megabytes() - before


def anonymous_megabytes() -> float:
    """Resident memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("this kernel does not report RssAnon")


def training_step() -> Callable[[list[MicroBatch]], None]:
    """One real update of the small model."""
    machine = choose_machine("cpu", "float32")
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=VOCAB_SIZE, n_layer=4, n_head=4, n_embd=128, block_size=64))
    optim = OptimConfig(name="adamw")
    optimizer = build_optimizer(model, optim, Rates.of(optim, model.config, 768))
    step = Step(model, optimizer, machine, grad_clip=1.0)

    def take(batch: list[MicroBatch]) -> None:
        step.gradients(batch, lambda: None)
        step.apply()

    return take


def sleep(batch: list[MicroBatch]) -> None:
    """A step that the CPU has no part in."""
    time.sleep(GPU_STEP_SECONDS)


def measure(sequences: Sequences, order: Order,
            compute: Callable[[list[MicroBatch]], None]) -> dict[int, tuple[float, float]]:
    """(seconds waited, seconds per step) for each number of workers; medians over rounds."""
    batches = Batches(Shuffled(sequences, 1), order)
    rounds: dict[int, list[tuple[float, float]]] = {workers: [] for workers in WORKERS}
    for number in range(ROUNDS):
        for workers in WORKERS:
            rounds[workers].append(one_round(batches, workers,
                                             number * (WARM_UP + STEPS), compute))
    return {workers: (statistics.median(waited for waited, _ in found),
                      statistics.median(whole for _, whole in found))
            for workers, found in rounds.items()}


def one_round(batches: Batches, workers: int, first: int,
              compute: Callable[[list[MicroBatch]], None]) -> tuple[float, float]:
    """Mean seconds waited, and mean seconds per step, once the queue has filled."""
    waited: list[float] = []
    whole: list[float] = []
    with ReadAhead(batches.step, workers) as ahead:
        for step in range(first, first + WARM_UP + STEPS):
            asked = time.perf_counter()
            batch = ahead.step(step)
            waited.append(time.perf_counter() - asked)
            compute(batch)
            whole.append(time.perf_counter() - asked)
    return statistics.mean(waited[WARM_UP:]), statistics.mean(whole[WARM_UP:])


if __name__ == "__main__":
    main()
