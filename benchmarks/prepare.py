"""Preparing a dataset, start to finish, against tiktoken's own batch call on text in memory.

usage: python benchmarks/prepare.py [PATH/gpt2.tiktoken] [PATH/tinyshakespeare.txt]

Ours is the whole command: start Python, read the file, encode, write, hash, name the folder; with
two processes. tiktoken's is `encode_ordinary_batch` with two threads, its ranks loaded and the text
in memory; that call alone is timed. Arms take turns, five rounds, medians. Beside them, what limits
us: the encoding alone in one process. Then peak memory (the sum over all processes of what each has
for itself, sampled) at a text and at ten times that text, and at a single line of that size.
Writes benchmarks/results/prepare.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import UserError, run_command  # noqa: E402
from gpt.fast_encoding import FastEncoding  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.runtime import cpu_name  # noqa: E402
from gpt.tokenizer import build_tokenizer  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "prepare.json"
SHARED = ROOT.parent / "shared" / "data"
ROUNDS, WORKERS = 5, 2
TEXT_BYTES = 32_000_000
PARTS = 64  # that tiktoken's threads share


def main(argv: list[str]) -> None:
    """Measure speed and memory, print, and keep the figures."""
    paths = [Path(word) for word in argv] or [SHARED / "gpt2.tiktoken",
                                              SHARED / "tinyshakespeare.txt"]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is not there; give the paths of gpt2.tiktoken and of "
                            "tinyshakespeare.txt")
    ranks, prose = paths[0].resolve(), paths[1].read_text(encoding="utf-8")
    figures: dict[str, Any] = {"hardware": f"{cpu_name()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = {"prose": prose * (TEXT_BYTES // len(prose) + 1), "code": python_files()}
        for kind, text in texts.items():
            (folder / f"{kind}.txt").write_text(text, encoding="utf-8")
            figures[kind] = speed(folder, kind, text, ranks)
        figures["jsonl"] = speed(folder, "jsonl", as_records(folder, texts["code"]), ranks)
        figures["peak_memory_mb"] = memory(folder, texts["code"], ranks)
    write_json(RESULTS, figures)


def python_files() -> str:
    """Distinct Python source that lies on this machine, up to the size wanted."""
    parts, size = [], 0
    for path in sorted({p for root in sys.path for p in Path(root or ".").rglob("*.py")}):
        text = path.read_text(encoding="utf-8", errors="ignore")
        parts.append(text)
        size += len(text)
        if size >= TEXT_BYTES:
            break
    return "".join(parts)


def as_records(folder: Path, text: str) -> str:
    """The text as JSON lines of about two thousand characters; returns it."""
    with (folder / "jsonl.jsonl").open("w", encoding="utf-8") as file:
        for i in range(0, len(text), 2_000):
            file.write(json.dumps({"text": text[i:i + 2_000]}) + "\n")
    return text


def speed(folder: Path, kind: str, text: str, ranks: Path) -> dict[str, float]:
    """Seconds and megabytes per second of every arm, and our ratio to tiktoken's batch call."""
    tokenizer = build_tokenizer(str(ranks))
    encoding, fast = tokenizer._encoding, FastEncoding.of(tokenizer.pattern, tokenizer.ranks)
    assert fast is not None
    size = len(text) // PARTS + 1
    parts = [text[i:i + size] for i in range(0, len(text), size)]
    if kind == "jsonl":
        parts = [text[i:i + 2_000] for i in range(0, len(text), 2_000)]
    arms: dict[str, Callable[[], object]] = {
        "ours, whole command": lambda: command(folder, f"{kind}.{_suffix(kind)}", ranks),
        "tiktoken, 2 threads": lambda: encoding.encode_ordinary_batch(parts, num_threads=2),
        "tiktoken, 1 thread": lambda: [encoding.encode_ordinary(part) for part in parts],
        "our encoding alone, 1 process": lambda: [fast.encode(part) for part in parts]}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm, run in arms.items():
            start = time.perf_counter()
            run()
            seconds[arm].append(time.perf_counter() - start)
    megabytes = len(text.encode()) / 1e6
    figures = {"megabytes": megabytes}
    for arm, times in seconds.items():
        figures[f"{arm}, s"] = statistics.median(times)
        print(f"{kind:6} {arm:30} {statistics.median(times):6.2f} s  "
              f"{megabytes / statistics.median(times):6.1f} MB/s")
    figures["ratio"] = statistics.median(
        theirs / ours for ours, theirs in zip(seconds["ours, whole command"],
                                              seconds["tiktoken, 2 threads"], strict=True))
    print(f"{kind:6} ours / tiktoken's batch call     {figures['ratio']:.2f} x  (goal 1.3 x)")
    return figures


def _suffix(kind: str) -> str:
    return "jsonl" if kind == "jsonl" else "txt"


def command(folder: Path, source: str, ranks: Path, out: str = "out") -> int:
    """Prepare a file of the folder; returns the peak memory of all processes, in bytes."""
    subprocess.run(["rm", "-rf", str(folder / out)], check=True)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "data/prepare.py"), source, f"tokenizer={ranks}",
         f"out={out}", f"workers={WORKERS}"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    peak = [0]
    if source.startswith("memory"):
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        watcher.join()
    if process.wait():
        raise UserError(f"preparing {source} failed with exit code {process.returncode}")
    return peak[0]


def memory(folder: Path, text: str, ranks: Path) -> dict[str, float]:
    """Peak memory in MB at a text, at ten times that, and at one line of ten times that."""
    cases = {"1 x": (text, 1), "10 x": (text, 10), "10 x in one line": (_one_line(text), 10)}
    figures = {}
    for case, (content, times) in cases.items():
        path = folder / f"memory-{case.replace(' ', '-')}.txt"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(times):
                file.write(content)
        peaks = [command(folder, path.name, ranks) / 1e6 for _ in range(3)]
        figures[case] = statistics.median(peaks)
        print(f"memory {case:18} {path.stat().st_size / 1e6:6.0f} MB of text: peak "
              f"{figures[case]:.0f} MB")
        path.unlink()
    return figures


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Sample what the processes of a session have of their own."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_own_memory(pid) for pid in _session(process.pid)))
        time.sleep(0.02)


def _session(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                yield int(entry.name)


def _own_memory(pid: int) -> int:
    """Its share of resident memory, in bytes (pages held by several processes count in parts)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    run_command(main)
