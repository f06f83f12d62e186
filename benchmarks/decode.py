"""Generation, token by token: ours against transformers and llama.cpp, and against the memory.

usage: python benchmarks/decode.py [--rounds=N] [--arms=ARM,ARM]

Random weights in GPT-2's architecture: the 124M shape, and one of 10 M parameters (6 layers of
width 384, 257 tokens). A prompt of 32 tokens and 64 greedy ones behind it, one text or 16 at a
time, in float32, bfloat16 and int8; and the time to the first token behind 512. Each arm is a
process of its own, its model made or read before anything is timed; the arms take turns, and
medians count. The limit is what is read in a second, in a sum over 512 MiB, over the bytes of the
weights. llama.cpp (llama-cpp-python) reads our GGUF export, and is left out where it is not
installed; transformers uses its own cache, and where the processor does not compute in bfloat16 it
has one text there alone: the rest would take an hour. `command` arms are whole processes: sample.py
and 100 tokens, by gpt/generation/native and without it. Writes benchmarks/results/decode.json,
once all arms have run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.runs import arms_in_turn, choose, no_more  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.machine.hardware import computes_in_bfloat16  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "decode.json"
ROUNDS, PROMPT, NEW, LONG_PROMPT, BATCH = 5, 32, 64, 512, 16
SHAPES = {"124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257},
          "10M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "vocab_size": 257}}
CONTEXT = 1024


def arms() -> list[str]:
    """NAME of tool, number format and shape."""
    formats = ["float32", "bfloat16"]
    found = [f"{tool} {number} {shape}" for shape in SHAPES for number in formats
             for tool in ("ours", "transformers")]
    found += [f"ours int8 {shape}" for shape in SHAPES]
    found += [f"command {how} {shape}" for shape in SHAPES for how in ("native", "plain")]
    if find_spec("llama_cpp") is not None:
        kinds = {"float32": "f32", "bfloat16": "bf16"}
        found += [f"llama.cpp {kinds[number]} {shape}" for shape in SHAPES for number in formats]
        found += [f"llama.cpp q8_0 {shape}" for shape in SHAPES]
    return found


def main(argv: list[str]) -> None:
    """Every arm in turn, then the report. With --arm ARM FOLDER: that arm, in here."""
    if argv[:1] == ["--arm"]:
        print(json.dumps(measure(argv[1], Path(argv[2]))))
        return
    chosen = choose(argv, arms(), ROUNDS)
    no_more(chosen)
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), chosen.arms)
        bandwidth = bytes_per_second()
        found = arms_in_turn(__file__, chosen.arms, folder, chosen.rounds)
    figures = report(found, max(bandwidth, bytes_per_second()))
    if chosen.is_whole:
        write_json(RESULTS, figures | {"rounds": chosen.rounds})


def bytes_per_second() -> float:
    """What all cores read from memory: the best of five sums."""
    numbers = torch.ones(2**27)
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        durations.append(time.perf_counter() - start)
    return numbers.nbytes / min(durations)


def make_models(folder: Path, names: list[str]) -> None:
    """Each shape as our checkpoint, as a Hugging Face folder and, in the number formats that these
    arms read, as GGUF, with the same weights."""
    from gpt.configuration import ModelConfig
    from gpt.interop.gguf.writing import export_gguf
    from gpt.interop.model_card import about_checkpoint
    from gpt.interop.writing import export_huggingface
    from gpt.model import GPT
    from gpt.runs import checkpoint
    from gpt.tokenizer import build_tokenizer
    tokenizer = build_tokenizer("byte")  # the model's other ids are padding, and count all the same
    for shape, sizes in SHAPES.items():
        torch.manual_seed(0)
        model = GPT(ModelConfig(
            block_size=CONTEXT, position="learned", norm="layernorm", mlp="gelu_tanh",
            qk_norm=False, bias=True, tie_embeddings=True, n_kv_head=sizes["n_head"], **sizes))
        (folder / shape).mkdir()
        checkpoint.save_model(folder / shape / "ours", model, tokenizer, "random weights")
        about = about_checkpoint(folder / shape / "ours", None)
        export_huggingface(model, tokenizer, folder / shape / "hf", about)
        for arm in names:
            tool, number, of = arm.split()
            if tool == "llama.cpp" and of == shape:
                kind = {"f32": "float32", "bf16": "bfloat16"}.get(number, number)
                export_gguf(model, tokenizer, folder / shape / number, about, kind)


def prompts(count: int, length: int) -> list[list[int]]:
    """Token ids."""
    return torch.randint(0, 256, (count, length),
                         generator=torch.Generator().manual_seed(0)).tolist()


def measure(arm: str, folder: Path) -> dict[str, float]:
    """Tokens per second of one text and of many, and seconds to the first token of a long one."""
    tool, number, shape = arm.split()
    if tool == "command":
        return {"seconds": command_line(folder / shape / "ours", number)}
    start = {"ours": start_ours, "transformers": start_transformers,
             "llama.cpp": start_llama}[tool]
    seconds = start(folder / shape, number)
    seconds(prompts(1, PROMPT), 4)  # warm
    found = {"one": per_token(seconds, 1)}
    if (tool, number) == ("transformers", "bfloat16") and not computes_in_bfloat16("cpu"):
        return found
    if tool != "llama.cpp":  # whose Python package has one text at a time
        found["many"] = per_token(seconds, BATCH)
    found["first"] = statistics.median(seconds(prompts(1, LONG_PROMPT), 1) for _ in range(3))
    return found


def command_line(model: Path, how: str) -> float:
    """Seconds of a process that writes 100 tokens."""
    plain = ("from gpt.generation.native import model; model.library = lambda: None; "
             * (how == "plain"))
    words = [str(model), "--prompt", "The quick", "--max-new-tokens", "100", "--min-new-tokens",
             "100", "--temperature", "0", "--device", "cpu", "--dtype", "float32"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"{plain}import sample; sample.main({words!r})"],
                   cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def per_token(seconds: Callable[[list[list[int]], int], float], count: int) -> float:
    """Tokens per second behind the first ones."""
    chosen = prompts(count, PROMPT)
    return count * (NEW - 1) / (seconds(chosen, NEW) - seconds(chosen, 1))


def start_ours(folder: Path, number: str) -> Callable[[list[list[int]], int], float]:
    """A function that generates and says how long it took."""
    import gpt
    from gpt.configuration import SamplingConfig
    from gpt.generation import Engine, Request
    lm = gpt.load(str(folder / "ours"), "cpu", number)

    def seconds(texts: list[list[int]], count: int) -> float:
        config = SamplingConfig(temperature=0, max_new_tokens=count)
        start = time.perf_counter()
        engine = Engine(lm.model, lm.machine, rows=len(texts),
                        max_tokens=len(texts[0]) + count)
        made = sum(1 for _ in engine.run([Request(text, config) for text in texts]))
        assert made == len(texts) * count
        return time.perf_counter() - start

    return seconds


def start_transformers(folder: Path, number: str) -> Callable[[list[list[int]], int], float]:
    """The same by `generate` with its cache."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=getattr(torch, number))

    @torch.inference_mode()
    def seconds(texts: list[list[int]], count: int) -> float:
        read, start = torch.tensor(texts), time.perf_counter()
        made = model.generate(read, attention_mask=torch.ones_like(read), do_sample=False,
                              min_new_tokens=count, max_new_tokens=count, pad_token_id=0)
        assert made.size(1) == read.size(1) + count
        return time.perf_counter() - start

    return seconds


def start_llama(folder: Path, number: str) -> Callable[[list[list[int]], int], float]:
    """The same by llama.cpp, one text at a time."""
    import llama_cpp
    llama = llama_cpp.Llama(str(next((folder / number).glob("*.gguf"))), n_ctx=CONTEXT,
                            n_threads=os.cpu_count(), n_threads_batch=os.cpu_count(),
                            verbose=False)

    def seconds(texts: list[list[int]], count: int) -> float:
        llama.reset()
        start = time.perf_counter()
        for made, _ in enumerate(llama.generate(texts[0], temp=0.0, repeat_penalty=1.0), 1):
            if made == count:
                break
        return time.perf_counter() - start

    return seconds


def report(found: dict[str, list[dict[str, float]]], bandwidth: float) -> dict[str, Any]:
    """A line per arm, the ratios; all figures."""
    medians = {arm: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
               for arm, rounds in found.items()}
    for arm, figures in medians.items():
        print(f"{arm:26}", ", ".join(LINE[name].format(value) for name, value in figures.items()))
    ratios = {f"{arm} / {peer}": faster(medians[arm], medians[peer])
              for arm in medians for peer in peers(arm) if peer in medians}
    for pair, ratio in ratios.items():
        print(pair, ", ".join(f"{name} {value:.2f} x" for name, value in ratio.items()))
    limits = {f"{number} {shape}": bandwidth / (size * weights(shape))
              for number, size in (("float32", 4), ("bfloat16", 2), ("int8", 1))
              for shape in SHAPES}
    print(f"limits at {bandwidth / 1e9:.1f} GB/s:",
          ", ".join(f"{name} {limit:.0f} tokens/s" for name, limit in limits.items()))
    return {"hardware": choose_machine("cpu").describe(), "torch": torch.__version__,
            "bytes_per_second": bandwidth, "limits": limits, "ratios": ratios, "medians": medians,
            "all": found}


LINE = {"one": "{:.1f} tokens/s", "many": f"{{:.1f}} with {BATCH} texts",
        "first": f"first of {LONG_PROMPT} after {{:.3f}} s", "seconds": "{:.2f} s"}


def peers(arm: str) -> list[str]:
    """What an arm is compared with."""
    tool, number, shape = arm.split()
    if tool == "command":
        return [f"command plain {shape}"] * (number == "native")
    if tool != "ours":
        return []
    theirs = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}[number]
    return [f"transformers {number} {shape}", f"llama.cpp {theirs} {shape}"]


def faster(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """How many times as fast: rates are divided one way, durations the other."""
    return {name: theirs[name] / ours[name] if name in ("first", "seconds") else
            ours[name] / theirs[name] for name in ours if name in theirs}


def weights(shape: str) -> int:
    """That are read for each token: matrices of the layers, and the output layer."""
    sizes = SHAPES[shape]
    return 12 * sizes["n_layer"] * sizes["n_embd"]**2 + sizes["vocab_size"] * sizes["n_embd"]


if __name__ == "__main__":
    run_command(main)
