"""LoRA on a model of 1.5 B parameters: ours against transformers with peft, speed and memory.

Qwen3's architecture with random weights; rank 16 on every matrix; 8 rows of 1,024 random tokens a
step, all supervised; AdamW, in bfloat16. Ours keeps the frozen weights in float32, or in int8;
peft's arm has them in bfloat16, as its documentation loads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.decoding import in_bfloat16
from benchmarks.on_gpu.results import Results
from benchmarks.plain_gpt import plain_step
from gpt.batches import MicroBatch
from gpt.configuration import AdapterConfig, ModelConfig, OptimConfig
from gpt.model import GPT
from gpt.model.lora import adapt
from gpt.optim import Rates, build_optimizer
from gpt.training.step import Step

RANK, ALPHA, ROWS, CONTEXT = 16, 32.0, 8, 1024
Shape = dict[str, int]


def measure(bench: Bench, results: Results) -> None:
    """Ours and theirs, eager and compiled."""
    shape = bench.choose({"n_layer": 28, "n_embd": 2048, "n_head": 16, "n_kv_head": 8,
                          "head_dim": 128, "n_inner": 6144, "vocab_size": 32_768},
                         {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32,
                          "n_inner": 128, "vocab_size": 512})
    arms: dict[str, Callable[[], tuple[Callable[[], object], int]]] = {
        "ours, compiled": functools.partial(ours, bench, shape, True, "full"),
        "ours on int8, compiled": functools.partial(ours, bench, shape, True, "int8"),
        "ours, eager": functools.partial(ours, bench, shape, False, "full")}
    if missing := [name for name in ("transformers", "peft") if find_spec(name) is None]:
        results.leave_out("peft", f"not installed: {', '.join(missing)}")
    else:
        arms["peft, compiled"] = functools.partial(theirs, bench, shape, True)
        arms["peft, eager"] = functools.partial(theirs, bench, shape, False)
    for name, build in arms.items():
        results.measure(name, lambda build=build: figures(bench, build))  # type: ignore[misc]


def figures(bench: Bench, build: Callable[[], tuple[Callable[[], object], int]]) -> dict[str, Any]:
    """Tokens per second and peak memory of an arm."""
    bench.forget()
    step, learned = build()
    found: dict[str, float] = {}

    def measured() -> None:
        found["seconds_per_step"] = bench.seconds(step, times=3, rounds=3)

    peak = bench.peak_bytes(measured)
    rows, T = bench.choose((ROWS, CONTEXT), (2, 32))
    return {"tokens_per_second": rows * T / found["seconds_per_step"], "peak_bytes": peak,
            "weights_that_learn": learned, **found}


def ours(bench: Bench, shape: Shape, compiled: bool, base: str) -> tuple[Callable[[], object], int]:
    """(a step, weights that learn)"""
    rows, T = bench.choose((ROWS, CONTEXT), (2, 32))
    machine, optim = bench.machine(compiled, deterministic=True), OptimConfig(name="adamw", lr=1e-4)
    with bench.device:
        model = GPT(ModelConfig(block_size=T, **shape)).train()
        adapt(model, AdapterConfig(rank=RANK, alpha=ALPHA, base=base))
    optimizer = build_optimizer(model, optim, Rates.of(optim, model.config, rows * T))
    machine.place(model)
    step = Step(model, optimizer, machine, grad_clip=1.0)
    tokens = torch.randint(256, (rows, T + 1))
    part = MicroBatch(tokens[:, :-1], tokens[:, 1:], rows * T)

    def take() -> None:
        step.gradients([part], lambda: None)
        step.apply()

    return take, learned(model)


def theirs(bench: Bench, shape: Shape, compiled: bool) -> tuple[Callable[[], object], int]:
    """The same with transformers and peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM
    rows, T = bench.choose((ROWS, CONTEXT), (2, 32))
    model = in_bfloat16(bench, lambda: Qwen3ForCausalLM(Qwen3Config(
        vocab_size=shape["vocab_size"], hidden_size=shape["n_embd"],
        intermediate_size=shape["n_inner"], num_hidden_layers=shape["n_layer"],
        num_attention_heads=shape["n_head"], num_key_value_heads=shape["n_kv_head"],
        head_dim=shape["head_dim"], max_position_embeddings=T, tie_word_embeddings=False,
        use_cache=False)))
    with bench.device:
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=int(ALPHA),
                                                 target_modules="all-linear")).train()
    loss: Any = torch.compile(model) if compiled else model
    tokens = torch.randint(256, (rows, T), device=bench.device)
    step = plain_step(model, lambda inputs, labels: loss(input_ids=inputs, labels=labels).loss,
                      bench.device.type)
    return lambda: step(tokens, tokens), learned(model)


def learned(model: nn.Module) -> int:
    """Weights that have a gradient."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
