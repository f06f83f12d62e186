"""Generation, token by token: ours against transformers' static cache, and against the memory.

Random weights in bfloat16; a prompt of 32 tokens and 128 greedy ones behind it, for one text, 16
and 64 at a time. The clock runs from the second token to the last: without the prompt, and without
what is made once, as the CUDA graph of ours and the compiled step of theirs. The limit is how often
the weights can be read, at the bytes per second of a copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.bench import Bench, kernels
from benchmarks.on_gpu.results import Results
from gpt.configuration import ModelConfig, SamplingConfig
from gpt.generation import Engine, Request
from gpt.machine.device import Machine
from gpt.model import GPT

PROMPT, NEW, ROUNDS = 32, 128, 3
# (layers, heads, width, inner width, vocabulary): GPT-2's first two, Llama 2's 7B.
SHAPES = {"124m": (12, 12, 768, 3072, 50_304), "1.5b": (48, 25, 1600, 6400, 50_304),
          "7b": (32, 32, 4096, 11_008, 32_000)}
Moments = Callable[[int, int], list[float]]  # at which each of so many texts has its next token


def measure(bench: Bench, results: Results, size: str) -> None:
    """Ours with each number of texts, then theirs."""
    counts, shape = bench.choose((1, 16, 64), (1, 2)), bench.choose(SHAPES[size],
                                                                    (2, 2, 64, 128, 512))
    copied = results.measure("copy", lambda: {"bytes_per_second": bench.copied_bytes()})
    if copied is None:
        return
    bandwidth = copied["bytes_per_second"]
    ours_in_turn(bench, results, counts, shape, bandwidth)
    bench.forget()
    if find_spec("transformers") is None:
        results.leave_out("transformers", "the package is not installed")
    elif any(f"transformers, {count}" not in results.figures for count in counts):
        theirs, weights = start_transformers(bench, shape)
        for count in counts:
            results.measure(f"transformers, {count}", lambda count=count: (  # type: ignore[misc]
                per_token(bench, theirs, count, weights, bandwidth)))


def ours_in_turn(bench: Bench, results: Results, counts: tuple[int, ...], shape: tuple[int, ...],
                 bandwidth: float) -> None:
    """Ours as it is; of one text also the longest kernels, and what compiling the step would give.
    """
    model, weights = our_model(bench, shape)
    for count in counts:
        results.measure(f"ours, {count}", lambda count=count: per_token(  # type: ignore[misc]
            bench, generator_of(bench, model), count, weights, bandwidth))
    generate = generator_of(bench, model)
    results.measure("kernels of ours, 1", lambda: generate(1, bench.choose(32, 6)) and kernels(
        bench, lambda: generate(1, bench.choose(32, 6)), times=1))
    if bench.device.type == "cuda":
        results.measure("compiled, 1", lambda: per_token(
            bench, generator_of(bench, model, compiled=True), 1, weights, bandwidth))
    else:
        results.leave_out("compiled, 1", "it needs CUDA")


def per_token(bench: Bench, generate: Moments, count: int, weights: int, bandwidth: float
              ) -> dict[str, Any]:
    """Tokens per second behind the first two, and how much of the memory's speed that is."""
    new = bench.choose(NEW, 6)
    generate(count, new)  # compiles, chooses kernels
    found = []
    for _ in range(bench.choose(ROUNDS, 1)):
        moments = generate(count, new)
        assert len(moments) == new
        found.append((moments[-1] - moments[1]) / (new - 2))
    each = statistics.median(found)
    return {"tokens_per_second": count / each, "milliseconds_per_token": 1e3 * each,
            "of_bandwidth": weights / each / bandwidth, "weight_bytes": weights}


def our_model(bench: Bench, shape: tuple[int, ...]) -> tuple[GPT, int]:
    """(the model, bytes of weights that a token reads)"""
    layers, heads, width, inner, vocabulary = shape
    config = ModelConfig(vocab_size=vocabulary, block_size=1024, n_layer=layers, n_head=heads,
                         n_kv_head=heads, n_embd=width, n_inner=inner, **architecture(shape))
    model = in_bfloat16(bench, lambda: GPT(config).eval())
    tables = model.embedding.token_embedding.weight.nbytes * (not config.tie_embeddings)
    return model, sum(p.nbytes for p in model.parameters()) - tables


def generator_of(bench: Bench, model: GPT, compiled: bool = False) -> Moments:
    """What generates, with one engine for all that is alike, and looks at the clock.

    compiled: the step is compiled before it is recorded, which the toolkit has no option for.
    """
    engines: dict[tuple[int, int], Engine] = {}

    def generate(count: int, new: int) -> list[float]:
        if (count, new) not in engines:
            engine = Engine(model, Machine(bench.device, torch.bfloat16), rows=count,
                            max_tokens=PROMPT + new)
            if compiled:
                engine._graph._compute = torch.compile(engine._graph._compute)
            engines[count, new] = engine
        settings = SamplingConfig(temperature=0, max_new_tokens=new)
        made = engines[count, new].run([Request(text, settings)
                                        for text in prompts(count).tolist()])
        return [time.perf_counter() for _ in made][count - 1::count]

    return generate


def architecture(shape: tuple[int, ...]) -> dict[str, Any]:
    """GPT-2's, or Llama's where the feed-forward is not four times as wide."""
    if shape[3] == 4 * shape[2]:
        return {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "qk_norm": False,
                "bias": True, "tie_embeddings": True}
    return {"qk_norm": False, "tie_embeddings": False}


def start_transformers(bench: Bench, shape: tuple[int, ...]) -> tuple[Moments, int]:
    """The same by `generate`, with a static cache, for which it compiles the step on CUDA."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    layers, heads, width, inner, vocabulary = shape
    if architecture(shape).get("tie_embeddings"):
        model = in_bfloat16(bench, lambda: GPT2LMHeadModel(GPT2Config(
            vocab_size=vocabulary, n_positions=1024, n_layer=layers, n_head=heads, n_embd=width,
            bos_token_id=0, eos_token_id=0)).eval())
        tables = 0
    else:
        model = in_bfloat16(bench, lambda: LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=1024, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, hidden_size=width,
            intermediate_size=inner, tie_word_embeddings=False)).eval())
        tables = model.get_input_embeddings().weight.nbytes

    @torch.inference_mode()
    def generate(count: int, new: int) -> list[float]:
        read, moments = prompts(count).to(bench.device), list[float]()

        def look_at_the_clock(tokens: Tensor, scores: Any, **settings: Any) -> Tensor:
            bench.wait()
            moments.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        model.generate(read, attention_mask=torch.ones_like(read), do_sample=False,
                       min_new_tokens=new, max_new_tokens=new, pad_token_id=0,
                       cache_implementation="static", stopping_criteria=[look_at_the_clock])
        return moments

    return generate, sum(p.nbytes for p in model.parameters()) - tables


def in_bfloat16(bench: Bench, build: Callable[[], nn.Module]) -> Any:
    """A model that is drawn on the device, and never stands in float32."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            return build()
    finally:
        torch.set_default_dtype(torch.float32)


def prompts(count: int) -> Tensor:
    """Token ids, (count, PROMPT)."""
    return torch.randint(0, 256, (count, PROMPT), generator=torch.Generator().manual_seed(0))
