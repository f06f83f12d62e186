"""Reading published tokenizers and encoding many texts with them, against the `tokenizers` library.

usage: python benchmarks/tokenizers_read.py [FOLDER]

FOLDER: folders with a tokenizer.json, build/tokenizers by default, where
`python tests/interop/published.py build/tokenizers` puts eight. Each is read in a process of its
own, first with an empty cache, then from it, as in every later run; sixty files of Python's library
are encoded together, five times in turn with the library's `encode_batch`, one core each.
Writes benchmarks/results/tokenizers_read.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import UserError, run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "tokenizers_read.json"
ROUNDS, FILES = 5, 60


def main(argv: list[str]) -> None:
    """Every folder, a line each."""
    if argv[:1] == ["--one"]:
        return print(json.dumps(one(argv[1], Path(argv[2]))))
    folder = Path(argv[0]) if argv else ROOT / "build/tokenizers"
    found = sorted(path.parent for path in folder.glob("*/tokenizer.json"))
    if not found:
        raise UserError(f"{folder} has no folders with a tokenizer.json; fetch some: "
                        "python tests/interop/published.py build/tokenizers")
    results = {path.name: measured(path) for path in found}
    from gpt.machine.device import choose_machine
    write_json(RESULTS, {"hardware": choose_machine(dtype="float32").describe(),
                         "files": FILES, "tokenizers": results})


def measured(folder: Path) -> dict[str, Any]:
    """All figures of one tokenizer: medians of reading, encoding in turns."""
    with tempfile.TemporaryDirectory() as cache:
        first = in_a_process("ours", folder, cache)
        later, library = [], []
        for _ in range(ROUNDS):
            later.append(in_a_process("ours", folder, cache)["seconds"])
            library.append(in_a_process("library", folder, cache)["seconds"])
        encoding = in_a_process("encoding", folder, cache)
    row = {"library_s": median(library), "first_s": first["seconds"], "later_s": median(later),
           **encoding}
    print(f"{folder.name:12} read {row['library_s']:.2f} s by tokenizers, {row['first_s']:.2f} s "
          f"here the first time, {row['later_s']:.2f} s later "
          f"({row['later_s'] / row['library_s']:.2f} x); encoded {row['batch_mb_s']:.2f} MB/s, "
          f"{row['ours_mb_s']:.2f} here ({row['ours_mb_s'] / row['batch_mb_s']:.2f} x)", flush=True)
    return row


def in_a_process(what: str, folder: Path, cache: str) -> dict[str, Any]:
    """`one` with a cache of its own, on one core."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, str(folder)], capture_output=True, text=True,
        check=True, env={**os.environ, "XDG_CACHE_HOME": cache, "RAYON_NUM_THREADS": "1",
                         "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def one(what: str, folder: Path) -> dict[str, Any]:
    """Seconds to read a tokenizer, in a process that has everything imported; or MB/s."""
    from tokenizers import Tokenizer

    from gpt.tokenizer import build_tokenizer

    file = folder / "tokenizer.json"
    file.read_bytes()  # from the disk, once
    if what == "encoding":
        return encoded(build_tokenizer(str(folder)), Tokenizer.from_file(str(file)))
    start = time.perf_counter()
    _ = build_tokenizer(str(folder)) if what == "ours" else Tokenizer.from_file(str(file))
    return {"seconds": time.perf_counter() - start}


def encoded(tokenizer: Any, library: Any) -> dict[str, float]:
    """MB/s of many texts at once, in turns; the median of each."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:FILES]
    texts = [tokenizer.writable(path.read_text(encoding="utf-8", errors="replace"))
             for path in paths]
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[float]] = {"ours": [], "batch": []}
    arms: dict[str, Callable[[Sequence[str]], Any]] = {
        "ours": tokenizer.encode_arrays,
        "batch": lambda some: [one.ids for one in library.encode_batch(
            some, add_special_tokens=False)]}
    for _ in range(ROUNDS):
        for name, encode in arms.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)
    return {f"{name}_mb_s": size / median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    run_command(main)
