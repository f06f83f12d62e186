"""Training throughput at the 10.7 M shape: ours against transformers' GPT-2 and litgpt's GPT.

usage: python benchmarks/throughput.py [--rounds=N] [--arms="ours, eager,litgpt, compiled"]

6 layers, 6 heads, width 384, context 256, batch 16, vocabulary 65; a step is forward, backward,
clipping and fused AdamW, eager and compiled, in float32 and, where the processor computes in it,
bfloat16. Each arm lives in a process of its own, as it comes (ours keeps freed memory, as train.py
does), and they take turns, a step at a time; the limit is a 1024 x 1024 product measured between
them. "ours" has the default's grouped key/value heads, and so a tenth fewer parameters than the
peers; "ours, as many" has theirs. Needs transformers and litgpt (pip install litgpt). Writes
benchmarks/results/throughput.json, once all arms have run.
"""

from __future__ import annotations

import math
import statistics
import subprocess
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

from benchmarks.runs import Chosen, choose, no_more  # noqa: E402
from gpt.batches import MicroBatch  # noqa: E402
from gpt.configuration import ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.allocator import keep_freed_memory  # noqa: E402
from gpt.machine.device import Machine, choose_machine  # noqa: E402
from gpt.machine.hardware import (  # noqa: E402
    computes_in_bfloat16,
    measure_matmul_flops,
    package_version,
)
from gpt.model import GPT  # noqa: E402
from gpt.optim import Rates, build_optimizer  # noqa: E402
from gpt.training.choices import choose_micro_batch_size  # noqa: E402
from gpt.training.step import Step  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "throughput.json"
LAYERS, HEADS, WIDTH, CONTEXT, BATCH, VOCABULARY = 6, 6, 384, 256, 16, 65
ROUNDS = 9
GOAL, GOAL_OF_PEAK = 1.1, 0.65


def main(argv: list[str]) -> None:
    """Every number format in turn; then the file. With --arm: one of the processes."""
    if argv[:1] == ["--arm"]:
        work(argv[1], argv[2] == "compiled", argv[3])
        return
    arms = [f"{name}, {mode}" for name in BUILDERS for mode in ("eager", "compiled")]
    chosen = choose(argv, arms, ROUNDS)
    no_more(chosen)
    formats = ["float32"]
    if computes_in_bfloat16(choose_machine().device.type):
        formats.append("bfloat16")
    else:
        print("bfloat16: left out, this processor does not compute in it")
    found = {dtype: compare(choose_machine(dtype=dtype), dtype, chosen) for dtype in formats}
    if chosen.is_whole:
        write_json(RESULTS, {"hardware": choose_machine().describe(), "rounds": chosen.rounds,
                             "formats": found, "goal": GOAL, "goal_of_peak": GOAL_OF_PEAK,
                             "packages": {name: package_version(name)
                                          for name in ("torch", "transformers", "litgpt")}})


def work(name: str, compiled: bool, dtype: str) -> None:
    """Be an arm: tell FLOPs per token, then take a step for every line that comes in."""
    machine = choose_machine(dtype=dtype)
    step, flops = BUILDERS[name](machine, compiled)
    step(), step()  # compiles, allocates
    print("FLOPs", flops, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        machine.wait()
        print("seconds", time.perf_counter() - start, flush=True)


class Arm:
    """A process that takes steps when asked."""

    def __init__(self, name: str, mode: str, dtype: str):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--arm", name, mode, dtype], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.flops_per_token = self._answer("FLOPs")

    def step(self) -> float:
        """Its seconds."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        return self._answer("seconds")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self, what: str) -> float:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(what):
                return float(line.split()[1])
        sys.exit(f"{self._process.args} ended early; run it by hand to see why")


def compare(machine: Machine, dtype: str, chosen: Chosen) -> dict[str, Any]:
    """Arms in one number format, taking turns."""
    arms = {arm: Arm(*arm.rsplit(", ", 1), dtype) for arm in chosen.arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    peaks = []
    for _ in range(chosen.rounds):
        peaks.append(measure_matmul_flops(machine.device, machine.dtype))
        for name, arm in arms.items():
            seconds[name].append(arm.step())
    for arm in arms.values():
        arm.close()
    return report(machine, {name: statistics.median(s) for name, s in seconds.items()},
                  {name: arm.flops_per_token for name, arm in arms.items()},
                  statistics.median(peaks))


def report(machine: Machine, seconds: dict[str, float], flops_per_token: dict[str, float],
           peak: float) -> dict[str, Any]:
    """A line per arm, and the ratios."""
    rates = {name: BATCH * CONTEXT / s for name, s in seconds.items()}
    best_peer = max((rate for name, rate in rates.items() if not name.startswith("ours")),
                    default=math.nan)
    of_peak = {name: flops_per_token[name] * rate / peak for name, rate in rates.items()}
    print(f"{machine.describe()}: a product reaches {peak / 1e9:,.0f} GFLOP/s")
    for name, rate in rates.items():
        print(f"{name:24} {rate:8,.0f} tokens/s  {rate / best_peer:.2f} of the best peer (goal "
              f"{GOAL})  {of_peak[name]:.0%} of the limit (goal {GOAL_OF_PEAK:.0%})")
    return {"tokens_per_second": rates, "of_peak": of_peak, "peak_flops": peak,
            "ratio": {name: rate / best_peer for name, rate in rates.items()
                      if name.startswith("ours")}}


def ours(machine: Machine, compiled: bool, **shape: Any) -> tuple[Callable[[], None], float]:
    """(a step, model FLOPs per token), as the trainer takes it."""
    keep_freed_memory()
    model = GPT(ModelConfig(vocab_size=VOCABULARY, block_size=CONTEXT, n_layer=LAYERS, n_head=HEADS,
                            n_embd=WIDTH, **shape)).train()
    optim = OptimConfig(name="adamw")
    optimizer = build_optimizer(model, optim, Rates.of(optim, model.config, BATCH * CONTEXT))
    Machine(machine.device, machine.dtype, compile=compiled).place(model)
    step = Step(model, optimizer, machine, grad_clip=1.0)
    rows = choose_micro_batch_size(TrainConfig(batch_size=BATCH), model.config, machine)

    def take() -> None:
        parts = [MicroBatch(inputs, targets, inputs.numel()) for inputs, targets in
                 zip(*(tokens.split(rows) for tokens in some_tokens()), strict=True)]
        step.gradients(parts, lambda: None)
        step.apply()

    return take, model_flops(model)


def ours_as_many(machine: Machine, compiled: bool) -> tuple[Callable[[], None], float]:
    """With a key/value head for every query head, and the peers' number of parameters."""
    return ours(machine, compiled, n_kv_head=HEADS)


def transformers_gpt2(machine: Machine, compiled: bool) -> tuple[Callable[[], None], float]:
    """Its own model and loss, in a plain loop."""
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH,
        bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    return plain_loop(machine, compiled, model,
                      lambda inputs, targets: model(input_ids=inputs, labels=inputs).loss)


def litgpt(machine: Machine, compiled: bool) -> tuple[Callable[[], None], float]:
    """Its GPT in the same shape: parallel residual off, GELU, LayerNorm, rotary positions."""
    import litgpt.model as theirs
    model = theirs.GPT(theirs.Config(
        block_size=CONTEXT, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, n_layer=LAYERS,
        n_head=HEADS, n_embd=WIDTH, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", intermediate_size=4 * WIDTH))
    return plain_loop(machine, compiled, model, lambda inputs, targets: F.cross_entropy(
        model(inputs).flatten(0, 1), targets.flatten()))


def plain_loop(machine: Machine, compiled: bool, model: nn.Module,
               loss_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[Callable[[], None], float]:
    """A step with torch's fused AdamW and clipping."""
    model.to(machine.device).train()
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def take() -> None:
        inputs, targets = (tokens.to(machine.device) for tokens in some_tokens())
        with machine.autocast():
            loss = loss_of(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return take, model_flops(model)


def some_tokens() -> tuple[Tensor, Tensor]:
    """Inputs and targets, (BATCH, CONTEXT) each."""
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def model_flops(model: nn.Module) -> float:
    """Per token: 6 N + 12 · layers · width · context, N without position tables.

    Source: arXiv:2204.02311, appendix B.
    """
    tables = [name for name, _ in model.named_parameters() if "wpe" in name]
    parameters = {p.data_ptr(): p.numel() for name, p in model.named_parameters()
                  if name not in tables}
    return 6 * sum(parameters.values()) + 12 * LAYERS * WIDTH * CONTEXT


BUILDERS = {"ours": ours, "ours, as many": ours_as_many, "transformers": transformers_gpt2,
            "litgpt": litgpt}

if __name__ == "__main__":
    run_command(main)
