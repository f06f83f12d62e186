"""Peak memory of one training step of GPT-2's 124M shape: ours against transformers' GPT-2.

usage: python benchmarks/memory.py

Vocabulary 50,304, batch 4 x 1,024, float32, AdamW, each arm in a process of its own, in turn; the
limit is what no step can do without: weights, gradients and AdamW's two moments. "ours" cuts the
batch into micro-batches as training does for this machine; "uncut" does not; "recomputed" also
computes activations again. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "memory.json"
VOCABULARY, BATCH, CONTEXT = 50_304, 4, 1024
ARMS = ("ours", "ours, uncut", "ours, recomputed", "transformers")
ROUNDS = 2  # they differ by less than a thousandth
GOAL = 0.6


def main(argv: list[str]) -> None:
    """Without arguments: every arm in turn, then the report. With one: that arm, in here."""
    if argv:
        print(json.dumps(step_of(argv[0])))
        return
    peaks: dict[str, list[int]] = {arm: [] for arm in ARMS}
    for _ in range(ROUNDS):
        for arm in ARMS:
            done = subprocess.run([sys.executable, __file__, arm], capture_output=True, text=True,
                                  check=True)
            peaks[arm].append(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])
    report(peaks)


def report(peaks: dict[str, list[int]]) -> None:
    """A line per arm, and the file."""
    from gpt.machine.device import choose_machine
    medians = {arm: statistics.median(found) for arm, found in peaks.items()}
    limit = 4 * 4 * parameters()
    for arm, peak in medians.items():
        print(f"{arm:18} {peak / 2**20:7,.0f} MiB  {peak / medians['transformers']:.2f} of "
              f"transformers (goal {GOAL})  {peak / limit:.2f} of the limit")
    print(f"{'limit':18} {limit / 2**20:7,.0f} MiB")
    write_json(RESULTS, {"hardware": choose_machine(dtype="float32").describe(),
                         "torch": torch.__version__, "peak_bytes": medians, "all": peaks,
                         "limit_bytes": limit,
                         "ratio": medians["ours"] / medians["transformers"], "goal": GOAL})


def step_of(arm: str) -> dict[str, int]:
    """One full step, and the most memory that this process ever had."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1))
    if arm == "transformers":
        step_of_transformers(tokens)
    else:
        step_of_ours(tokens, recompute=arm.endswith("recomputed"),
                     micro_batch_size=BATCH if arm.endswith("uncut") else "auto")
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def parameters() -> int:
    """Of the model."""
    from gpt.model import GPT, parameter_count
    with torch.device("meta"):
        return parameter_count(GPT(shape()))


def shape():
    """GPT-2's."""
    from gpt.configuration import ModelConfig
    return ModelConfig(preset="gpt2", vocab_size=VOCABULARY, block_size=CONTEXT)


def step_of_ours(tokens: torch.Tensor, recompute: bool, micro_batch_size: int | str) -> None:
    """As the trainer does it: gradients added up over micro-batches, clipping, fused AdamW."""
    from gpt.batches import MicroBatch
    from gpt.configuration import OptimConfig, TrainConfig
    from gpt.machine.device import choose_machine
    from gpt.model import GPT
    from gpt.optim import Rates, build_optimizer
    from gpt.training.choices import choose_micro_batch_size
    from gpt.training.step import Step

    train = TrainConfig(batch_size=BATCH, recompute_activations=recompute,
                        micro_batch_size=micro_batch_size)
    machine = choose_machine("cpu", "float32")
    model = GPT(shape()).train()
    model.recompute = recompute
    optim = OptimConfig(name="adamw", lr=1e-4)
    optimizer = build_optimizer(model, optim, Rates.of(optim, model.config, BATCH * CONTEXT))
    size = choose_micro_batch_size(train, model.config, machine)
    parts = [MicroBatch(part[:, :-1], part[:, 1:], part[:, 1:].numel())
             for part in tokens.split(size)]
    step = Step(model, optimizer, machine, train.grad_clip)
    step.gradients(parts, lambda: None)
    step.apply()


def step_of_transformers(tokens: torch.Tensor) -> None:
    """The plain loop that its documentation shows."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, embd_pdrop=0.0,
                                       attn_pdrop=0.0, resid_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = tokens[:, :-1].contiguous()
    model(input_ids=inputs, labels=inputs).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


if __name__ == "__main__":
    run_command(main)
