"""Preparing a dataset, start to finish, against tiktoken's own batch call on text in memory.

usage: python benchmarks/prepare.py [PATH/gpt2.tiktoken] [PATH/tinyshakespeare.txt]

Ours is all of a preparation with two processes: load the ranks, read the file, encode, write, hash,
name the folder; and, beside it, the whole command, which starts Python before that. tiktoken's is
`encode_ordinary_batch` with two threads, its ranks loaded and the text in memory; that call alone
is timed. Arms take turns, five rounds, medians. What limits us is the encoding alone, in one
process (half of that time in two). Then peak memory (the sum over all processes of what each has
for itself, sampled) at a text, at ten and thirty times that, and at one line of ten times that.
Writes benchmarks/results/prepare.json.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import UserError, run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.hardware import cpu_name  # noqa: E402
from gpt.tokenizer import RankTokenizer, build_tokenizer  # noqa: E402
from gpt.tokenizer.fast_encoding import FastEncoding  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "prepare.json"
SHARED = ROOT.parent / "shared" / "data"
ROUNDS, WORKERS = 5, 2
TEXT_BYTES = 32_000_000
PARTS = 64  # that tiktoken's threads share
OURS, COMMAND = "ours, start to finish", "ours, whole command"
TIMED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from data.prepare import main
start = time.perf_counter()
main(sys.argv[2:])
print(time.perf_counter() - start)
"""


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
    assert isinstance(tokenizer, RankTokenizer)
    encoding, fast = tokenizer._encoding, FastEncoding.of(tokenizer.pattern, tokenizer.ranks)
    assert fast is not None
    size = len(text) // PARTS + 1
    parts = [text[i:i + size] for i in range(0, len(text), size)]
    if kind == "jsonl":
        parts = [text[i:i + 2_000] for i in range(0, len(text), 2_000)]
    arms: dict[str, Callable[[], object]] = {
        "tiktoken, 2 threads": lambda: encoding.encode_ordinary_batch(parts, num_threads=2),
        "tiktoken, 1 thread": lambda: [encoding.encode_ordinary(part) for part in parts],
        "our encoding, 1 process": lambda: [fast.encode_all(parts[i:i + 64])
                                            for i in range(0, len(parts), 64)],
        OURS: lambda: command(folder, f"{kind}.{'jsonl' if kind == 'jsonl' else 'txt'}", ranks)}
    seconds: dict[str, list[float]] = {arm: [] for arm in [*arms, COMMAND]}
    for _ in range(ROUNDS):
        for arm, run in arms.items():
            start = time.perf_counter()
            result = run()
            seconds[COMMAND if arm == OURS else arm].append(time.perf_counter() - start)
            if isinstance(result, Run):
                seconds[OURS].append(result.seconds)
    megabytes = len(text.encode()) / 1e6
    figures = {"megabytes": megabytes}
    for arm, times in seconds.items():
        figures[f"{arm}, s"] = statistics.median(times)
        print(f"{kind:6} {arm:30} {statistics.median(times):6.2f} s  "
              f"{megabytes / statistics.median(times):6.1f} MB/s")
    for arm in (OURS, COMMAND):
        ratio = statistics.median(theirs / ours for ours, theirs in zip(
            seconds[arm], seconds["tiktoken, 2 threads"], strict=True))
        figures[f"{arm} / tiktoken, 2 threads"] = ratio
        print(f"{kind:6} {arm} against tiktoken's batch call: {ratio:.2f} x (goal 1.3 x)")
    return figures


class Run(NamedTuple):
    """A preparation: its own time, and the peak memory of all its processes in bytes."""

    seconds: float
    peak: int


def command(folder: Path, source: str, ranks: Path, out: str = "out") -> Run:
    """Prepare a file of the folder."""
    shutil.rmtree(folder / out, ignore_errors=True)
    process = subprocess.Popen(
        [sys.executable, "-c", TIMED, str(ROOT), source, f"tokenizer={ranks}", f"out={out}",
         f"workers={WORKERS}"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    peak = _watch(process) if source.startswith("memory") else 0
    said, _ = process.communicate()
    if process.returncode:
        raise UserError(f"preparing {source} failed with exit code {process.returncode}")
    return Run(float(said.split()[-1]), peak)


def memory(folder: Path, text: str, ranks: Path) -> dict[str, float]:
    """Peak memory in MB at a text, at ten and thirty times that, and at one line of ten times."""
    cases = {"1 x": (text, 1), "10 x": (text, 10), "30 x": (text, 30),
             "10 x in one line": (_one_line(text), 10)}
    figures = {}
    for case, (content, times) in cases.items():
        path = folder / f"memory-{case.replace(' ', '-')}.txt"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(times):
                file.write(content)
        figures[case] = command(folder, path.name, ranks).peak / 1e6
        print(f"memory {case:18} {path.stat().st_size / 1e6:6.0f} MB of text: peak "
              f"{figures[case]:.0f} MB")
        path.unlink()
    return figures


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _watch(process: subprocess.Popen[bytes]) -> int:
    """The most that the processes of a session had of their own at any time, in bytes."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_own_memory(pid) for pid in _session(process.pid)))
        time.sleep(0.05)
    return peak


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
