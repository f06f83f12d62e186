"""Pages of a long run and of a GPT-2: seconds, memory, size.

usage: python benchmarks/pages.py [report | look] [--lines N]

report: `python -m gpt report` on a metrics.jsonl of 1,000,000 lines, as a whole command. The peer
is pandas, which reads the same file into a table, and draws nothing; beside it Python's own json,
line by line, which keeps nothing. Asked for: under 20 s, 300 MB, and a page under 3 MB.

look: `python -m gpt look` on a GPT-2 of 124 M parameters (random ones, in a Hugging Face folder)
and 128 tokens, as a whole command. The peer is what one would write with transformers: the same
model's attentions, then a forward pass for each of the 144 heads with its part set to zero. Asked
for: under 20 s and 10 MB.

Arms take turns, three rounds, medians; memory is the largest of the process at any time. Writes
benchmarks/results/pages.json.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.hardware import cpu_name  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "pages.json"
PARTS = ["report", "look"]
ROUNDS, TOKENS = 3, 128
GPT = [sys.executable, "-m", "gpt"]
PANDAS = "import sys, pandas; pandas.read_json(sys.argv[1], lines=True)"
JSON = "import sys, json\nfor line in open(sys.argv[1], 'rb'): json.loads(line)"
# A process inherits the largest memory of the one that started it, which is to be small.
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, code, used = os.wait4(process.pid, 0)
print(used.ru_maxrss / 1024)
sys.exit(code != 0)
"""
HEAD_BY_HEAD = """
import sys, torch
from transformers import AutoTokenizer, GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
ids, width = torch.arange(int(sys.argv[2])).unsqueeze(0), model.config.n_embd // model.config.n_head
with torch.inference_mode():
    model(ids, output_attentions=True)
    for block in model.transformer.h:
        for head in range(model.config.n_head):
            def silence(module, given, head=head):
                given[0][..., head * width:(head + 1) * width] = 0
            hook = block.attn.c_proj.register_forward_pre_hook(silence)
            model(ids).logits[0, -1].log_softmax(-1)
            hook.remove()
"""


def main(argv: list[str]) -> None:
    """Measure, print, keep."""
    lines = int(argv[argv.index("--lines") + 1]) if "--lines" in argv else 1_000_000
    parts = [word for word in argv if word in PARTS] or PARTS
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    figures: dict[str, Any] = kept | {"hardware": f"{cpu_name()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in parts:
            figures[part] = {"report": report, "look": look}[part](folder, lines)
            tell(part, figures[part])
    write_json(RESULTS, figures)


def report(folder: Path, lines: int) -> dict[str, Any]:
    """Of a long run."""
    metrics, page = long_run(folder / "run", lines), folder / "report.html"
    found = {"lines": lines, "bytes": metrics.stat().st_size} | compared({
        "ours": [*GPT, "report", str(folder / "run"), "-o", str(page)],
        "pandas, read alone": [sys.executable, "-c", PANDAS, str(metrics)],
        "json, line by line": [sys.executable, "-c", JSON, str(metrics)]})
    return found | {"page_bytes": page.stat().st_size}


def look(folder: Path, lines: int) -> dict[str, Any]:
    """Inside a GPT-2."""
    text, page = gpt2(folder / "gpt2"), folder / "look.html"
    found = {"tokens": TOKENS} | compared({
        "ours": [*GPT, "look", str(folder / "gpt2"), "--prompt", text, "-o", str(page)],
        "transformers, head by head": [sys.executable, "-c", HEAD_BY_HEAD, str(folder / "gpt2"),
                                       str(TOKENS)]})
    return found | {"page_bytes": page.stat().st_size}


def long_run(folder: Path, lines: int) -> Path:
    """A run with so many lines of metrics."""
    folder.mkdir()
    draw, path = random.Random(0), folder / "metrics.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, lines + 1):
            rate = 0.02 * min(1.0, step / 1000)
            line = {"event": "train", "step": step, "tokens": step * 2048,
                    "elapsed_seconds": step * 0.13371231,
                    "loss": 2 + draw.gauss(4 / step**0.3, 0.1),
                    **{f"lr{of}": rate for of in ("", "_embeddings", "_vectors", "_matrices")},
                    **{f"grad_norm{of}": draw.random() for of in ("", "_embeddings", "_vectors",
                                                                  "_matrices")},
                    "data_seconds": draw.random() / 1e4, "tokens_per_second": 15e3 + draw.random(),
                    "flops_per_token": 9150720, "mfu": draw.random(),
                    "peak_memory_bytes": 486768640}
            file.write(json.dumps(line) + "\n")
    return path


def gpt2(folder: Path) -> str:
    """Write a GPT-2 with random weights and a tokenizer of bytes; returns a text of 128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt.tokenizer import build_tokenizer, tokenizer_json
    tokenizer = build_tokenizer("byte")
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    GPT2LMHeadModel(GPT2Config(**ends)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    return ("It was the best of times, it was the worst of times, it was the age of wisdom. "
            * 2)[:TOKENS]


def compared(arms: dict[str, list[str]]) -> dict[str, Any]:
    """Median seconds and the largest memory of commands that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    memory: dict[str, float] = dict.fromkeys(arms, 0.0)
    for _ in range(ROUNDS):
        for name, command in arms.items():
            began = time.perf_counter()
            used = subprocess.run([sys.executable, "-S", "-c", MEASURED, *command], cwd=ROOT,
                                  check=True, capture_output=True, text=True).stdout
            seconds[name].append(time.perf_counter() - began)
            memory[name] = max(memory[name], float(used))
    return {"seconds": {name: statistics.median(each) for name, each in seconds.items()},
            "peak_memory_mb": memory}


def tell(what: str, found: dict[str, Any]) -> None:
    """A line for each arm."""
    ours = found["seconds"]["ours"]
    for name, seconds in found["seconds"].items():
        print(f"{what}: {name}: {seconds:.1f} s, {found['peak_memory_mb'][name]:.0f} MB"
              + ("" if name == "ours" else f" ({seconds / ours:.2f} times ours)"))
    print(f"{what}: the page has {found['page_bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    run_command(main)
