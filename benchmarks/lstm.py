"""What a Transformer gains over an LSTM, and what it pays: five measured parts.

usage: python benchmarks/lstm.py [PATH/tinyshakespeare.txt] [--rounds=N] [--arms=ARM,ARM]
       python benchmarks/lstm.py --draw      draw docs/lstm/*.png from the results that are there

Both kinds have equally many parameters and train on the same batches by AdamW, each at the best of
three rates; seeds are one a round. Arms, each with a picture:

loss       validation loss on tiny Shakespeare by characters, after equal time and after equal
           steps; and that of the Transformer by Muon, as train.py trains it, which has no
           counterpart for the LSTM here
context    training tokens per second as rows grow, with as many tokens a step; one core and all
gradients  how much a character's embedding, d characters back, moves the loss at the last one
recall     which values a model still knows after d symbols of filler (benchmarks/lstm_recall.py)
decoding   bytes that are kept of a text, and time per token, as it grows

All on the processor, in float32. Takes about ten minutes. Writes benchmarks/results/lstm.json and
the pictures once all arms have run. Drawing needs matplotlib.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.lstm_decoding import decoding  # noqa: E402
from benchmarks.lstm_model import (  # noqa: E402
    KINDS,
    LSTM_LAYERS,
    AdamW,
    Draw,
    Look,
    Model,
    Optimizer,
    build,
    loss_of,
    take_step,
    toolkit_optimizer,
    train,
    training_flops,
)
from benchmarks.lstm_plots import draw_all  # noqa: E402
from benchmarks.lstm_recall import recall  # noqa: E402
from benchmarks.runs import choose, shakespeare, spread  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import read_json, write_json  # noqa: E402
from gpt.machine.allocator import keep_freed_memory  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.model import parameter_count  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "lstm.json"
PICTURES = ROOT / "docs" / "lstm"
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 16_384}
ROUNDS, BATCH, T = 2, 16, 128  # rows of a training step, and characters of each
SECONDS, LOOKS = 40.0, 8  # of training; measurements on the way
RATES = {"transformer": (2e-3, 4e-3, 8e-3), "lstm": (8e-3, 1.6e-2, 3.2e-2)}  # AdamW's
RATE_SECONDS = 8.0  # for which each is tried
MUON = "muon"  # the Transformer once more, by the toolkit's own optimizer
CONTEXTS, STEP_TOKENS, TAKES = (32, 64, 128, 256, 512, 1024, 2048), 2048, 3
GRADIENT_ROWS = 256


def main(argv: list[str]) -> None:
    """Measure the chosen parts and tell; or draw."""
    if "--draw" in argv:
        draw_all(read_json(RESULTS), PICTURES)
        return
    chosen = choose(argv, list(PARTS), ROUNDS)
    text = shakespeare(chosen).read_text(encoding="utf-8")
    hardware = choose_machine("cpu", "float32").describe()
    keep_freed_memory()  # as train.py does
    bench = Bench(text, chosen.rounds)
    sizes = {kind: parameter_count(bench.build(kind)) for kind in KINDS}
    print(f"{hardware}; parameters: {sizes['transformer']:,} and {sizes['lstm']:,}, "
          f"{sizes['lstm'] / sizes['transformer'] - 1:+.2%}")
    found = {}
    for part in chosen.arms:
        started = time.perf_counter()
        found[part] = PARTS[part](bench)
        found[part]["part_seconds"] = time.perf_counter() - started
        print(f"{part:10} took {found[part]['part_seconds']:.0f} s", flush=True)
    if chosen.is_whole:
        write_json(RESULTS, {
            "hardware": hardware, "torch": torch.__version__, "parameters": sizes,
            "shape": SHAPE | {"lstm_layers": LSTM_LAYERS,
                              "lstm_width": bench.build("lstm").embedding.embedding_dim},
            "rounds": chosen.rounds, "batch": BATCH, "characters_of_a_row": T, "parts": found})
        draw_all(read_json(RESULTS), PICTURES)


class Bench:
    """Tiny Shakespeare, and models that read it; each is trained once, whoever asks."""

    def __init__(self, text: str, rounds: int):
        characters = {character: number for number, character in enumerate(sorted(set(text)))}
        ids = torch.tensor([characters[character] for character in text])
        cut = len(ids) * 9 // 10
        self.text, self.held, self.vocab_size = ids[:cut], ids[cut:], len(characters)
        self.seeds = range(1, rounds + 1)
        self.trained = functools.cache(self._trained)
        self.losses_by_rate = functools.cache(self._losses_by_rate)

    def build(self, kind: str, seed: int = 0) -> Model:
        """A fresh model."""
        return build(kind, self.vocab_size, SHAPE, seed)

    def batches(self, seed: int) -> Draw:
        """Training rows; the n-th batch is the same for every model."""
        def draw(step: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            return self.rows(BATCH, T, generator)
        return draw

    def rows(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets from anywhere in the training text, (count, length) each."""
        starts = torch.randint(len(self.text) - length, (count,), generator=generator)
        rows = torch.stack([self.text[start:start + length + 1] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def held_rows(self) -> Tensor:
        """Every fourth row of T + 1 characters of the last tenth of the text."""
        return self.held[:len(self.held) // (T + 1) * (T + 1)].view(-1, T + 1)[::4]

    @torch.inference_mode()
    def loss(self, model: Model) -> float:
        """Validation loss in nats per character."""
        rows = self.held_rows()
        return sum(float(loss_of(model, part[:, :-1], part[:, 1:])) * len(part)
                   for part in rows.split(64)) / len(rows)

    def rate(self, kind: str) -> float:
        """AdamW's learning rate that is best of those tried."""
        tried = self.losses_by_rate(kind)
        return min(tried, key=tried.__getitem__)

    def optimizer(self, arm: str, model: Model) -> Optimizer:
        """AdamW at the best rate, or the toolkit's own."""
        if arm == MUON:
            return toolkit_optimizer(model, BATCH * T)
        return AdamW(model, self.rate(arm))

    def _losses_by_rate(self, kind: str) -> dict[float, float]:
        """Short runs, with a seed that counts nowhere else."""
        found = {}
        for rate in RATES[kind]:
            model = self.build(kind)
            [last] = train(model, AdamW(model, rate), self.batches(0), seconds=RATE_SECONDS)
            found[rate] = self.loss(model)
            print(f"loss       {kind:12} at a rate of {rate}: {found[rate]:.4f} "
                  f"after {RATE_SECONDS:.0f} s, {last.step} steps", flush=True)
        return found

    def _trained(self, arm: str, seed: int) -> tuple[Model, list[Look]]:
        model = self.build("transformer" if arm == MUON else arm, seed)
        return model, train(model, self.optimizer(arm, model), self.batches(seed), seconds=SECONDS,
                            look=self.loss, looks=LOOKS)


# ----- Validation loss


def loss(bench: Bench) -> dict[str, Any]:
    """Train each for as long; and of both kinds the one that took more steps once more, for as few
    as the other."""
    curves = {arm: [bench.trained(arm, seed)[1] for seed in bench.seeds] for arm in (*KINDS, MUON)}
    equal_steps = [min(curves[kind][i][-1].step for kind in KINDS) for i in range(len(bench.seeds))]
    at_equal_steps = {kind: [after_steps(bench, kind, seed, steps, curve[-1]) for seed, steps, curve
                             in zip(bench.seeds, equal_steps, curves[kind], strict=True)]
                      for kind in KINDS}
    for arm, own in curves.items():
        print(f"loss       {arm:12} {spread([curve[-1].value for curve in own], '.4f')} nats per "
              f"character after {SECONDS:.0f} s, {[curve[-1].step for curve in own]} steps",
              flush=True)
    for kind in KINDS:
        print(f"loss       {kind:12} {spread(at_equal_steps[kind], '.4f')} after {equal_steps} "
              "steps")
    return {"unit": "nats per character", "seconds": SECONDS, "equal_steps": equal_steps,
            "rates": {kind: {"chosen": bench.rate(kind), "tried": bench.losses_by_rate(kind)}
                      for kind in KINDS},
            "at_equal_steps": at_equal_steps,
            "curves": {arm: [[vars(look) for look in curve] for curve in own]
                       for arm, own in curves.items()}}


def after_steps(bench: Bench, kind: str, seed: int, steps: int, whole: Look) -> float:
    """The loss of a run of so many steps; whole: how the run of equal time ended."""
    if whole.step == steps:
        return whole.value
    model = bench.build(kind, seed)
    [last] = train(model, bench.optimizer(kind, model), bench.batches(seed), steps=steps,
                   look=bench.loss)
    return last.value


# ----- Training speed by context


def context(bench: Bench) -> dict[str, Any]:
    """Kinds, and numbers of cores, take turns at every length of rows."""
    models = {kind: bench.build(kind) for kind in KINDS}
    optimizers = {kind: AdamW(models[kind], 1e-3) for kind in KINDS}
    cores = torch.get_num_threads()
    records = []
    for length in CONTEXTS:
        arms = list(itertools.product(KINDS, sorted({1, cores})))
        seconds: dict[tuple[str, int], list[float]] = {arm: [] for arm in arms}
        for take in range(-1, len(bench.seeds) * TAKES):  # the first one does not count
            generator = torch.Generator().manual_seed(take + 1)
            rows = bench.rows(STEP_TOKENS // length, length, generator)
            for kind, threads in arms:
                torch.set_num_threads(threads)
                started = time.perf_counter()
                take_step(models[kind], optimizers[kind], *rows)
                if take >= 0:
                    seconds[kind, threads].append(time.perf_counter() - started)
        torch.set_num_threads(cores)
        for (kind, threads), durations in seconds.items():
            flops = training_flops(models[kind], length)
            speeds = [STEP_TOKENS / statistics.median(durations[i:i + TAKES])
                      for i in range(0, len(durations), TAKES)]
            records.append({"kind": kind, "threads": threads, "context": length,
                            "tokens_per_second": speeds, "flops_per_token": flops,
                            "flops_per_second": flops * statistics.median(speeds)})
            print(f"context    {kind:12} {length:5} characters, threads {threads}: "
                  f"{spread(speeds, ',.0f')} tokens/s, "
                  f"{records[-1]['flops_per_second'] / 1e9:.1f} GFLOP/s", flush=True)
    return {"unit": "tokens per second", "tokens_of_a_step": STEP_TOKENS, "records": records}


# ----- How far back gradients reach


def gradients(bench: Bench) -> dict[str, Any]:
    """Of the models that `loss` trains, over held-out rows."""
    rows = bench.held_rows()
    rows = rows[::math.ceil(len(rows) / GRADIENT_ROWS)]
    norms = {kind: [gradient_by_distance(bench.trained(kind, seed)[0], rows).tolist()
                    for seed in bench.seeds] for kind in KINDS}
    for kind in KINDS:
        for distance in (1, T // 4, T - 1):
            shares = [curve[distance] / curve[0] for curve in norms[kind]]
            print(f"gradients  {kind:12} {distance:4} characters back: {spread(shares, '.2e')} of "
                  "what it is at the last one", flush=True)
    return {"unit": "norm of the loss's gradient, over that at distance 0", "rows": len(rows),
            "norms": norms}


def gradient_by_distance(model: Model, rows: Tensor) -> Tensor:
    """Norm of the gradient that the loss at the last position has at the embedding of each
    character, by how far back it stands, in the mean over rows.  (N, T + 1) -> (T,)
    """
    vectors = []

    def keep(module: nn.Module, given: object, out: Tensor) -> None:
        out.retain_grad()
        vectors.append(out)

    hook = model.embedding.register_forward_hook(keep)
    scores = model(rows[:, :-1])[:, -1]  # (N, V)
    hook.remove()
    F.cross_entropy(scores, rows[:, -1], reduction="sum").backward()  # rows do not mix
    model.zero_grad()
    return vectors[0].grad.norm(dim=-1).mean(0).flip(0)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "loss": loss, "context": context, "gradients": gradients,
    "recall": lambda bench: recall(len(bench.seeds)),
    "decoding": lambda bench: decoding(bench.build("transformer"), bench.build("lstm"), bench.held,
                                       len(bench.seeds))}


if __name__ == "__main__":
    run_command(main)
