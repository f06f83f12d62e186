"""Training GPT-2's shapes: tokens per second and the share of the peak, ours and two peers.

Each arm is compiled and takes whole optimizer steps (forward, backward, clipping, fused AdamW) of
one micro-batch of 1,024-token sequences of random tokens, in bfloat16 with float32 weights; the
number of sequences is searched in powers of two, and the fastest counts. "ours" is as by default;
"ours, any order" has run.deterministic=false; "ours, documents" reads four documents a row, apart.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.bench import Bench, fastest, kernels
from benchmarks.on_gpu.results import Results
from benchmarks.plain_gpt import PlainGPT, plain_step
from gpt.batches import MicroBatch
from gpt.configuration import ModelConfig, OptimConfig
from gpt.model import GPT
from gpt.optim import Rates, build_optimizer
from gpt.training.step import Step

VOCABULARY = 50_304
SHAPES = {"124m": (12, 12, 768), "350m": (24, 16, 1024),  # layers, heads, width
          "1.5b": (48, 25, 1600)}
FORMULAS = {
    "flops_per_token": "6 N + 12 n_layer n_embd T, N without the position table (PaLM, appendix B)",
    "mfu": "flops_per_token x tokens_per_second / peak_flops of the data sheet, dense bfloat16",
    "mfu_without_attention": "the same with 6 N alone",
    "of_product": "flops_per_token x tokens_per_second / product_flops, measured before the arm"}

Sized = tuple[int, int, int]
StepOf = Callable[[], object]


def measure(bench: Bench, results: Results, size: str) -> None:
    """All arms at a size, largest batches as memory allows."""
    shape = bench.choose(SHAPES[size], (2, 2, 64))
    # To compile for a size takes long: where models are large, few are tried.
    batches = {"124m": (32, 64, 128), "350m": (16, 32), "1.5b": (8, 16)}[size]
    results.measure("formulas", lambda: FORMULAS)
    arms: dict[str, Callable[[int], tuple[StepOf, nn.Module]]] = {
        "ours": functools.partial(ours, bench, shape, deterministic=True),
        "plain loop": functools.partial(plain, bench, shape)}
    if find_spec("transformers") is None:
        results.leave_out("transformers", "the package is not installed")
    else:
        arms["transformers"] = functools.partial(transformers_gpt2, bench, shape)
    arms["ours, any order"] = functools.partial(ours, bench, shape)
    if size == "124m":
        arms["ours, documents"] = functools.partial(ours, bench, shape, deterministic=True,
                                                    documents=4)
    else:
        arms["ours, recomputed"] = functools.partial(ours, bench, shape, deterministic=True,
                                                     recompute=True)
    for name, build in arms.items():
        results.measure(name, lambda build=build: fastest(  # type: ignore[misc]
            bench.choose(batches, (1, 2)), functools.partial(one_batch, bench, build, shape),
            "tokens_per_second"))
    best = results.figures.get("ours, any order") or results.figures.get("ours")
    if best is not None:
        results.measure("kernels of ours", lambda: kernels(
            bench, warm(ours(bench, shape, best["batch"])[0])))


def one_batch(bench: Bench, build: Callable[[int], tuple[StepOf, nn.Module]], shape: Sized,
              batch: int) -> dict[str, Any]:
    """Figures of an arm with so many sequences."""
    bench.forget()
    product = bench.product_flops()
    start = time.perf_counter()
    step, model = build(batch)
    step()
    bench.wait()
    compiled = time.perf_counter() - start
    figures: dict[str, Any] = {}

    def measured() -> None:
        figures["seconds_per_step"] = bench.seconds(step, times=4, rounds=5)

    peak = bench.peak_bytes(measured)
    rate = batch * context(bench) / figures["seconds_per_step"]
    without, flops = model_flops(model, shape, context(bench))
    sheet = bench.machine().peak_flops
    return {"tokens_per_second": rate, "mfu": flops * rate / sheet,
            "mfu_without_attention": without * rate / sheet, "of_product": flops * rate / product,
            **figures, "product_flops": product, "peak_flops": sheet, "peak_bytes": peak,
            "flops_per_token": flops, "seconds_to_first_step": compiled}


def context(bench: Bench) -> int:
    """Tokens of a sequence."""
    return bench.choose(1024, 32)


def model_flops(model: nn.Module, shape: Sized, T: int) -> tuple[float, float]:
    """Per token, without attention's products and with them; as FORMULAS says."""
    layers, _, width = shape
    tables = {name for name, _ in model.named_parameters()
              if name.endswith(("position_embedding.weight", "wpe.weight", "places.weight"))}
    assert len(tables) == 1
    multiplied = sum({p.data_ptr(): p.numel() for name, p in model.named_parameters()
                      if name not in tables}.values())
    return 6.0 * multiplied, 6.0 * multiplied + 12 * layers * width * T


def ours(bench: Bench, shape: Sized, batch: int, deterministic: bool = False, documents: int = 0,
         recompute: bool = False) -> tuple[StepOf, nn.Module]:
    """As the trainer takes a step: (a step, the model)."""
    layers, heads, width = shape
    config = ModelConfig(preset="gpt2", vocab_size=bench.choose(VOCABULARY, 512),
                         block_size=context(bench), n_layer=layers, n_head=heads, n_kv_head=heads,
                         n_embd=width)
    machine = bench.machine(compile=True, deterministic=deterministic)
    with bench.device:
        model = GPT(config).train()
    model.recompute = recompute
    optim = OptimConfig(name="adamw")
    optimizer = build_optimizer(model, optim, Rates.of(optim, config, batch * config.block_size))
    machine.place(model)
    step = Step(model, optimizer, machine, grad_clip=1.0, say=refuse_smaller_portions)
    inputs, targets = random_batch(batch, bench, torch.device("cpu"))
    segments = None
    if documents:
        segments = (torch.arange(inputs.size(1)) * documents // inputs.size(1)).repeat(batch, 1)
    part = MicroBatch(inputs, targets, inputs.numel(), segments)

    def take() -> Tensor:
        loss, _ = step.gradients([part], lambda: None)
        step.apply()
        return loss

    return take, model


def refuse_smaller_portions(told: str) -> None:
    """Out of memory is the end of a size, as it is for the peers, which cannot cut a batch."""
    raise torch.OutOfMemoryError(told)


def plain(bench: Bench, shape: Sized, batch: int) -> tuple[StepOf, nn.Module]:
    """The hand-written peer."""
    layers, heads, width = shape
    with bench.device:
        model = PlainGPT(layers, heads, width, bench.choose(VOCABULARY, 512), context(bench))
    return loop_of(bench, model, model, batch)


def transformers_gpt2(bench: Bench, shape: Sized, batch: int) -> tuple[StepOf, nn.Module]:
    """transformers' GPT-2 with its own loss, in the same loop."""
    from transformers import GPT2Config, GPT2LMHeadModel
    layers, heads, width = shape
    with bench.device:
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=bench.choose(VOCABULARY, 512), n_positions=context(bench), n_layer=layers,
            n_head=heads, n_embd=width, bos_token_id=0, eos_token_id=0, embd_pdrop=0.0,
            attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False, attn_implementation="sdpa")).train()

    class Loss(nn.Module):
        """Its labels are shifted inside; ours are given as they are to be."""

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return model(input_ids=inputs, labels=inputs).loss

    return loop_of(bench, model, Loss(), batch)


def loop_of(bench: Bench, model: nn.Module, loss: nn.Module, batch: int
            ) -> tuple[StepOf, nn.Module]:
    """(a step of the plain loop with a compiled model, the model)"""
    torch.set_float32_matmul_precision("high")
    compiled: Any = torch.compile(loss)
    step = plain_step(model, compiled, bench.device.type)
    inputs, targets = random_batch(batch, bench, bench.device)
    return lambda: step(inputs, targets), model


def random_batch(batch: int, bench: Bench, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (batch, context) each."""
    tokens = torch.randint(bench.choose(50_257, 500), (batch, context(bench) + 1), device=device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def warm(step: StepOf) -> StepOf:
    """The step, compiled."""
    step(), step()
    return step
