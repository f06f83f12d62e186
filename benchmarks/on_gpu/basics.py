"""Whether the basics hold: an import, a training step and a generated token, in seconds."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.results import Results


def measure(bench: Bench, results: Results) -> None:
    """Each step by itself, eager, tiny; what fails is told with its traceback."""
    results.measure("import", lambda: {"torch": torch.__version__, "device": told(bench)})
    results.measure("training step", lambda: step(bench, torch.float32))
    results.measure("training step, bfloat16", lambda: step(bench, torch.bfloat16))
    results.measure("generated tokens", lambda: tokens(bench))


def told(bench: Bench) -> str:
    """The device's name."""
    import gpt
    assert gpt.load
    return bench.machine().describe()


def model() -> Any:
    """A few thousand parameters."""
    from gpt.configuration import ModelConfig
    from gpt.model import GPT
    torch.manual_seed(0)
    return GPT(ModelConfig(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=64))


def step(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """Three steps on the same batch: the last loss is lower than the first."""
    from gpt.batches import MicroBatch
    from gpt.configuration import OptimConfig
    from gpt.machine.device import Machine
    from gpt.optim import Rates, build_optimizer
    from gpt.training.step import Step
    learner, machine = model().train(), Machine(bench.device, dtype, deterministic=True)
    machine.place(learner)
    optim = OptimConfig(name="adamw", lr=1e-2)
    taken = Step(learner, build_optimizer(learner, optim, Rates.of(optim, learner.config, 256)),
                 machine, grad_clip=1.0)
    read = torch.randint(257, (4, 65), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(3):
        loss, _ = taken.gradients([MicroBatch(read[:, :-1], read[:, 1:], 256)], lambda: None)
        taken.apply()
        losses.append(float(loss))
    assert math.isfinite(sum(losses)) and losses[-1] < losses[0], losses
    return {"first_loss": losses[0], "third_loss": losses[-1]}


def tokens(bench: Bench) -> dict[str, Any]:
    """Four greedy tokens behind a prompt, on the device as on the processor."""
    from gpt.configuration import SamplingConfig
    from gpt.generation import Engine, Request
    from gpt.machine.device import Machine
    found = []
    for device in (torch.device("cpu"), bench.device):
        machine = Machine(device, torch.float32, exact=True)
        engine = Engine(model().eval().to(device), machine, rows=1)
        config = SamplingConfig(temperature=0, max_new_tokens=4)
        found.append([new.token for _, new in engine.run([Request([1, 2, 3], config)])])
    assert found[0] == found[1], found
    return {"tokens": str(found[1])}
