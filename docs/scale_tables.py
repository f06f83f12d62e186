"""Calculate what training costs on many devices, for docs/scale.md.

usage: python docs/scale_tables.py           print the tables
       python docs/scale_tables.py --write   put them into the page, between their markers

Nothing here is measured: gpt/parallel/cost.py says what is assumed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpt.configuration import ModelConfig
from gpt.model import GPT
from gpt.parallel.auto import FILLED, Needs, choose
from gpt.parallel.cost import DEVICES, Cost, cost, latency
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import Sizes
from gpt.parallel.traffic import Transfer, Work

PAGE = Path(__file__).resolve().parent / "scale.md"
H100 = DEVICES["H100"]
LLAMA2 = {"qk_norm": False, "norm_eps": 1e-5, "vocab_size": 32_000, "block_size": 4096}
# Shapes: GPT-2 and GPT-2 XL (Radford et al. 2019), Llama 2 7B and 70B (arXiv:2307.09288). Sequences
# of a step: GPT-3's tokens for models of that size (arXiv:2005.14165, table 2.1), Llama 2's 4M.
MODELS = {
    "124M": (ModelConfig(preset="gpt2", vocab_size=50_304), 512),
    "1.5B": (ModelConfig(preset="gpt2-xl", vocab_size=50_304), 1024),
    "7B": (ModelConfig(n_layer=32, n_head=32, n_kv_head=32, n_embd=4096, n_inner=11_008, **LLAMA2),
           1024),
    "70B": (ModelConfig(n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_inner=28_672, **LLAMA2),
            1024)}

# Source: Llama 3, arXiv:2407.21783, section 3.3.4: unexpected interruptions in 54 days.
DEVICE_HOURS_PER_FAILURE = 16_384 * 54 * 24 / 419
SAVE_SECONDS = 60


@dataclass(frozen=True)
class Plan:
    """What one would run."""

    sizes: Sizes
    work: Work
    cost: Cost

    @property
    def bytes_each(self) -> int:
        """On a device."""
        return sum(self.cost.memory.values())


def plans(model: GPT, sequences: int, devices: int, **fixed: int) -> Iterator[Plan]:
    """The layout that auto takes beside sizes that are fixed, without and with recomputing; with
    micro-batches of all powers of two."""
    for recompute in (False, True):
        needs = Needs.of(model, Work(sequences, recompute=recompute))
        sizes = choose(fixed, devices, H100.per_host, H100.memory, needs)
        micro_batch = 1
        while micro_batch <= max(1, sequences // sizes.data):
            work = Work(sequences, micro_batch, recompute)
            yield Plan(sizes, work, cost(model, sizes, work, H100))
            micro_batch *= 2


def best(model: GPT, sequences: int, devices: int, **fixed: int) -> Plan:
    """The plan that computes most, to a hundredth, with the most sequences at a time, which is what
    large products want; where nothing fits, the one that needs least."""
    all_of_them = list(plans(model, sequences, devices, **fixed))
    fitting = [plan for plan in all_of_them if plan.bytes_each <= FILLED * H100.memory]
    if not fitting:
        return min(all_of_them, key=lambda plan: plan.bytes_each)
    return max(fitting, key=lambda plan: (round(plan.cost.utilisation, 2),
                                             plan.work.micro_batch))


def layout(sizes: Sizes) -> str:
    """Sizes in words."""
    words = {"replicated": sizes.replicate, "sharded": sizes.shard, "context": sizes.context,
             "tensor": sizes.tensor, "pipeline": sizes.pipeline}
    return " × ".join(f"{way} {size}" for way, size in words.items() if size > 1) or "one device"


def row(name: str, plan: Plan, sequences: int, block_size: int) -> str:
    """Of a table."""
    devices, memory = plan.sizes.world_size, plan.bytes_each / 2**30
    first = (f"| {name} | {devices:,} | {sequences * block_size / 1e6:.2g}M "
             f"| {layout(plan.sizes)} ")
    if plan.bytes_each > FILLED * H100.memory:
        return f"{first}| does not fit | {memory:,.0f} GiB | | | |"
    at_once = f"{plan.work.micro_batch}{', recomputed' if plan.work.recompute else ''}"
    return (f"{first}| {at_once} | {memory:.1f} GiB | {plan.cost.bytes_sent / 1e9:,.1f} GB "
            f"| {plan.cost.seconds:.3g} s | {plan.cost.utilisation:.0%} |")


HEAD = """\
| model | devices | tokens a step | layout | sequences at a time | memory a device \
| sent by a device a step | a step | utilisation |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def layouts(cases: list[tuple[str, int, int, dict[str, int]]]) -> str:
    """A table of (model, devices, times as many sequences in a step, sizes that are fixed)."""
    rows = []
    for name, devices, more, fixed in cases:
        config, sequences = MODELS[name]
        plan = best(without_memory(config), more * sequences, devices, **fixed)
        rows.append(row(name, plan, more * sequences, config.block_size))
    return "\n".join([HEAD, *rows])


def failures(counts: tuple[int, ...]) -> str:
    """A table of interruptions, and of what they and saving cost.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval":
    √(2 · seconds of a save · seconds between failures).
    """
    rows = []
    for devices in counts:
        between = 3600 * DEVICE_HOURS_PER_FAILURE / devices
        every = math.sqrt(2 * SAVE_SECONDS * between)
        lost = SAVE_SECONDS / every + every / 2 / between
        rows.append(f"| {devices:,} | {between / 3600:,.1f} h | {86_400 / between:.2g} "
                    f"| {every / 60:.0f} min | {lost:.1%} |")
    return "\n".join([f"| devices | between interruptions | a day | save every, if it takes "
                      f"{SAVE_SECONDS} s | lost by saving and repeating |",
                      "| --- | --- | --- | --- | --- |", *rows])


def latencies(counts: tuple[int, ...]) -> str:
    """A table of what a collective operation of no bytes takes, by NCCL's own model."""
    rows = []
    for devices in counts:
        ring, tree = (1e3 * latency(Transfer("shard", kind, devices, 0, 1), H100.per_host)
                      for kind in ("all_gather", "all_reduce"))
        rows.append(f"| {devices:,} | {ring:.2g} ms | {tree:.2g} ms |")
    return "\n".join(["| devices | all-gather, reduce-scatter (a ring) | all-reduce (a tree) |",
                      "| --- | --- | --- |", *rows])


def tables() -> dict[str, str]:
    """All of the page, by the name in their markers."""
    return {"layouts": layouts([(name, devices, 1, {}) for name in MODELS
                                for devices in (1, 8, 64, 512)]),
            "internet": layouts([("7B", 4096, 1, {}), ("7B", 4096, 4, {}), ("70B", 4096, 1, {}),
                                 ("70B", 4096, 4, {}), ("70B", 4096, 4, {"shard": 64})]),
            "failures": failures((8, 512, 4096, 16_384)), "latencies": latencies((8, 512, 4096))}


def with_tables(page: str, drawn: dict[str, str]) -> str:
    """The page with each table between its markers."""
    for name, table in drawn.items():
        begin, end = f"<!-- {name}: by docs/scale_tables.py -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return page


def main(argv: list[str]) -> None:
    """Print, or write."""
    if argv == ["--write"]:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_tables(page, tables()), encoding="utf-8")
    elif argv:
        sys.exit(f"unknown: {' '.join(argv)}; give --write, or nothing")
    else:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main(sys.argv[1:])
