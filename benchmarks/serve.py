"""Serving: what `python -m gpt serve` writes in a second, and how long its clients wait for it.

usage: python benchmarks/serve.py [--rounds=N] [--arms=ARM,ARM]

Models of benchmarks/decode.py: random weights in the 124M shape of GPT-2, and 10 M parameters; in
float32 and, where the processor computes in it, bfloat16. Clients on the same machine, all of them
one process, stream POST /v1/completions: a prompt of 32 distinct tokens that was not asked before,
and 64 greedy ones behind it. Each has a request under way at any time; it sends no more than 20 of
them, and none after 6 seconds: what is under way then is finished. Tokens per second are those of
the time in which all clients are at work. The time to the first token is counted from before the
connection is opened, that between tokens from when one can be read to when the next one can.

"ours" is the server as it is by default, 16 texts at once; "single" is ours with --rows 1, one text
after the other, as without continuous batching; "llama.cpp" is llama_cpp.server with our GGUF
export, all cores, no text cut off for another one, and is left out where llama-cpp-python[server]
is not installed. Each arm is a process of its own in each round, and answers one request before it
is measured; the arms take turns, and medians of rounds count. A text that is not 64 tokens long
ends the benchmark. The limit of one client is what is read in a second, in a sum over 512 MiB, over
the bytes of the weights. Writes benchmarks/results/serve.json, once all arms have run, llama.cpp
among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.decode import (  # noqa: E402
    CONTEXT,
    SHAPES,
    bytes_per_second,
    make_models,
    weights,
)
from benchmarks.runs import arms_in_turn, choose, no_more  # noqa: E402
from benchmarks.serve_clients import crowd, figures  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.machine.hardware import computes_in_bfloat16  # noqa: E402
from tests.parallel.processes import free_port  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "serve.json"
ROUNDS, PROMPT, NEW, REQUESTS, SECONDS = 3, 32, 64, 20, 6.0
CLIENTS = {"ours": [1, 8, 16, 64], "single": [16], "llama.cpp": [1, 8, 16]}
GOALS = {("single", 16): 3.0, ("llama.cpp", 1): 1.0, ("llama.cpp", 8): 1.0}  # ours over theirs
BYTES = {"float32": 4, "bfloat16": 2}
KINDS = {"float32": "f32", "bfloat16": "bf16"}  # as llama.cpp calls them
PATIENCE, LONGEST = 120.0, 600.0  # seconds until a server answers, and until it has answered all


def arms() -> list[str]:
    """NAME of tool, number format and shape."""
    numbers = ["float32"] + ["bfloat16"] * computes_in_bfloat16("cpu")
    return [f"{tool} {KINDS[number] if tool == 'llama.cpp' else number} {shape}"
            for shape in SHAPES for number in numbers for tool in CLIENTS
            if tool != "llama.cpp" or has_llama()]


def has_llama() -> bool:
    """Whether llama_cpp.server can be started."""
    return all(find_spec(name) for name in ("llama_cpp", "sse_starlette", "starlette_context"))


def main(argv: list[str]) -> None:
    """Every arm in turn, then the report. With --arm ARM FOLDER: that arm, in here."""
    if argv[:1] == ["--arm"]:
        print(json.dumps(measure(argv[1], Path(argv[2]))))
        return
    chosen = choose(argv, arms(), ROUNDS)
    no_more(chosen)
    if not has_llama():
        print("llama.cpp is left out, and no result written: pip install "
              "'llama-cpp-python[server]'")
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), chosen.arms)
        bandwidth = bytes_per_second()
        found = arms_in_turn(__file__, chosen.arms, folder, chosen.rounds)
    told = report(found, max(bandwidth, bytes_per_second()))
    if chosen.is_whole and has_llama():
        write_json(RESULTS, told | {"rounds": chosen.rounds})


def measure(arm: str, folder: Path) -> dict[str, float]:
    """All figures of a server, with each number of clients: "8 tokens_per_second" and others."""
    tool, number, shape = arm.split()
    asked = {"model": shape, "max_tokens": NEW, "temperature": 0, "stream": True}
    if tool == "llama.cpp":
        asked["repeat_penalty"] = 1.0  # which it would change scores by
    found: dict[str, float] = {}
    with served(command(tool, folder / shape, number)) as port:

        def figures_of(count: int, requests: int) -> dict[str, float]:
            made = crowd(port, asked, PROMPT, count, requests, SECONDS)
            return figures(asyncio.run(asyncio.wait_for(made, LONGEST)), NEW)

        figures_of(1, 1)  # warm
        for count in CLIENTS[tool]:
            found |= {f"{count} {name}": value
                      for name, value in figures_of(count, REQUESTS).items()}
    return found


def command(tool: str, folder: Path, number: str) -> list[str]:
    """What starts a server, but for its port."""
    if tool == "llama.cpp":
        cores = str(os.cpu_count())
        return ["llama_cpp.server", "--model", str(next((folder / number).glob("*.gguf"))),
                "--n_ctx", str(CONTEXT), "--n_threads", cores, "--n_threads_batch", cores,
                "--logits_all", "False", "--interrupt_requests", "False", "--verbose", "False",
                "--host", "127.0.0.1"]
    rows = ["--rows", "1"] if tool == "single" else []
    return ["gpt", "serve", f"{folder.name}={folder / 'ours'}", "--device", "cpu", "--dtype",
            number, *rows]


@contextlib.contextmanager
def served(words: list[str]) -> Iterator[int]:
    """The port of a server that answers; it ends with the block."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", *words, "--port", str(port)], cwd=ROOT,
                                   stdout=log, stderr=log)
        try:
            if not answers(port, process):
                log.seek(0)
                sys.exit(f"{' '.join(words)} does not answer:\n{log.read().decode()}")
            yield port
        finally:
            process.kill()
            process.wait()


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a server; returns whether it came."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
            return True
        time.sleep(0.1)
    return False


def report(found: dict[str, list[dict[str, float]]], bandwidth: float) -> dict[str, Any]:
    """A line per figure, with goal and limit; all figures."""
    medians = {arm: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
               for arm, rounds in found.items()}
    for arm, values in medians.items():
        for count in CLIENTS[arm.split()[0]]:
            print(line(arm, count, values))
    limits = {f"{number} {shape}": bandwidth / (BYTES[number] * weights(shape))
              for number in BYTES for shape in SHAPES if f"ours {number} {shape}" in medians}
    for name, limit in limits.items():
        rate = medians[f"ours {name}"]["1 tokens_per_second"]
        print(f"{name}, 1 client: {rate / limit:.2f} of the limit, {limit:.0f} tokens/s at "
              f"{bandwidth / 1e9:.1f} GB/s")
    ratios = compared(medians)
    for name, ratio in ratios.items():
        goal = f", goal {ratio['goal']:.0f} x" if "goal" in ratio else ""
        print(f"{name}: {ratio['tokens_per_second']:.2f} x{goal}")
    return {"hardware": choose_machine("cpu").describe(), "torch": torch.__version__,
            "llama_cpp_python": version("llama-cpp-python") if has_llama() else None,
            "unit": "tokens per second of all clients; seconds to the first token and between two",
            "bytes_per_second": bandwidth, "limits": limits, "ratios": ratios, "medians": medians,
            "all": found}


def line(arm: str, count: int, found: dict[str, float]) -> str:
    """All figures of so many clients."""
    first, between = (" / ".join(f"{found[f'{count} {name}_{p}']:.3f}" for p in
                                 ("p50", "p90", "p99")) for name in ("first", "between"))
    rate = found[f"{count} tokens_per_second"]
    return (f"{arm:22} {clients(count):10} {rate:7.1f} tokens/s, first after {first} s, then every "
            f"{between} s (p50 / p90 / p99)")


def clients(count: int) -> str:
    """So many, in words."""
    return f"{count} client{'s' * (count > 1)}"


def compared(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """How many tokens ours writes while a peer writes one, and the goal where there is one."""
    found = {}
    for arm, theirs in medians.items():
        tool, number, shape = arm.split()
        number = next(name for name in KINDS if number in (name, KINDS[name]))
        ours = medians.get(f"ours {number} {shape}", {})
        for count in CLIENTS[tool] if tool != "ours" and ours else []:
            name = f"{count} tokens_per_second"
            goal = GOALS.get((tool, count))
            found[f"ours / {arm}, {clients(count)}"] = {
                "tokens_per_second": ours[name] / theirs[name]} | (
                {} if goal is None else {"goal": goal})
    return found


if __name__ == "__main__":
    run_command(main)
