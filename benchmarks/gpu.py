"""Everything that needs a GPU, in one command: checks, then measurements, most important first.

usage: python benchmarks/gpu.py [--minutes M] [--rehearse] [PART ...]

Each part has a time limit and a file, benchmarks/results/gpu-PART.json, in which every result
stands the moment it is known, with the card, its driver and torch's version. A call that is cut off
loses nothing: the next one goes on with what is missing. What is known of this card, driver and
torch is not measured again, unless its file is deleted; checks are, when the code has changed. What
needs a package that is not installed is named and left out. In the end the figures so far stand as
a table for the README.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_gpu.results import SAME, Results, environment  # noqa: E402
from benchmarks.on_gpu.table import table  # noqa: E402
from gpt.errors import OneLineParser, UserError, run_command  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TIMED_OUT = 124


@dataclass(frozen=True)
class Part:
    """Something to check or to measure.

    module: whose `measure(bench, results, *arguments)` does it.
    seconds: its limit. same: what of the environment has to be as it was for results to count.
    """

    name: str
    about: str
    seconds: float
    module: str
    arguments: tuple[str, ...] = ()
    same: tuple[str, ...] = SAME


HERE = "benchmarks.on_gpu"
CODE = (*SAME, "code")
PARTS = (
    Part("basics", "an import, a training step, a token", 60, f"{HERE}.basics", same=CODE),
    Part("checks", "every path against the processor", 270, f"{HERE}.checks", same=CODE),
    Part("training-124m", "GPT-2 124M: tokens per second, share of the peak, longest kernels", 420,
         f"{HERE}.training", ("124m",)),
    Part("decode-124m", "tokens per second, 1, 16 and 64 texts", 150, f"{HERE}.decoding",
         ("124m",)),
    Part("isolation", "documents and windows: mask, blocks, variable lengths", 90,
         f"{HERE}.isolation"),
    Part("training-1.5b", "GPT-2 1.5B, with and without recomputation", 420, f"{HERE}.training",
         ("1.5b",)),
    Part("decode-1.5b", "tokens per second, 1, 16 and 64 texts", 150, f"{HERE}.decoding",
         ("1.5b",)),
    Part("run", "the quick start's corpus, three minutes", 270, f"{HERE}.whole_run"),
    Part("lora-1.5b", "adapters: tokens per second and memory, ours and peft", 180,
         f"{HERE}.lora"),
    Part("training-350m", "GPT-2 350M, with and without recomputation", 300, f"{HERE}.training",
         ("350m",)),
    Part("decode-7b", "tokens per second, 1, 16 and 64 texts", 180, f"{HERE}.decoding", ("7b",)))


def main(argv: list[str]) -> None:
    """All parts, or some, one after the other; each in a process of its own."""
    options = parse(argv)
    if options.inside is not None:
        inside(*options.inside)
        return
    import torch
    if not (torch.cuda.is_available() or options.rehearse):
        print("no GPU here: torch finds no CUDA device; --rehearse runs every part on the "
              "processor, tiny")
        return
    parts = [part for part in PARTS if not options.parts or part.name in options.parts]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end the part
    if options.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            sound = in_order(parts, Path(folder), "cpu", options.minutes)
    else:
        sound = in_order(parts, RESULTS, "cuda", options.minutes)
        print(table(RESULTS))
    sys.exit(0 if sound else 1)


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises UserError for a part that is not there."""
    parser = OneLineParser(
        prog="python benchmarks/gpu.py", description=__doc__.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part.name:14} {part.about} (at most "
                                      f"{part.seconds:.0f} s)" for part in PARTS))
    parser.add_argument("parts", nargs="*", metavar="PART", help="some parts; default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="end after so many minutes, wherever that is")
    parser.add_argument("--rehearse", action="store_true",
                        help="every part on this processor, at tiny sizes, to know that it runs "
                             "before a GPU is paid for; results are not kept")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)  # part, folder, device
    options = parser.parse_args(argv)
    names = [part.name for part in PARTS]
    if unknown := [name for name in options.parts if name not in names]:
        raise UserError(f"there is no part {unknown[0]}; choose from {', '.join(names)}")
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g}: it takes more than none")
    return options


def in_order(parts: list[Part], folder: Path, device: str, minutes: float) -> bool:
    """Run what is not known yet; whether nothing failed."""
    end, here, sound = time.monotonic() + 60 * minutes, environment(), True
    print(f"{here['card']}, driver {here['driver']}, torch {here['torch']}")
    for part in parts:
        if known(part, folder, here).complete:
            print(f"{part.name}: known")
            continue
        seconds = min(part.seconds, end - time.monotonic())
        if seconds < 5:
            print(f"{part.name}: left for the next call")
            continue
        print(f"{part.name}: {part.about}; at most {seconds:.0f} s", flush=True)
        start = time.monotonic()
        code = run_part(part, folder, device, seconds)
        failed = known_failures(part, folder, here)
        print(f"{part.name}: {outcome(code, failed)}, {time.monotonic() - start:.0f} s", flush=True)
        cut_by_the_call = code == TIMED_OUT and seconds < part.seconds
        sound &= (not code or cut_by_the_call) and not failed
        if part.name == "basics" and not sound:
            print("the basics do not hold; nothing else was tried")
            break
    return sound


def known(part: Part, folder: Path, here: dict[str, str]) -> Results:
    """What its file says, if that was found here."""
    return Results(folder / f"gpu-{part.name}.json", here, part.same)


def known_failures(part: Part, folder: Path, here: dict[str, str]) -> list[str]:
    """Arms that the last call has tried in vain."""
    return sorted(known(part, folder, here).last_failed)


def run_part(part: Part, folder: Path, device: str, seconds: float) -> int:
    """In a process of its own, which is ended with all its children when its time is up."""
    process = subprocess.Popen([sys.executable, __file__, "--inside", json.dumps(asdict(part)),
                                str(folder), device], preexec_fn=os.setpgrp, cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def outcome(code: int, failed: list[str]) -> str:
    """In words."""
    if code == TIMED_OUT:
        return "cut off at its limit; what is known is kept, and the next call goes on"
    if code:
        return f"its process ended with {code}"
    return f"failed: {', '.join(failed)}" if failed else "done"


def inside(told: str, folder: str, device: str) -> None:
    """Be a part's process."""
    import torch

    from benchmarks.on_gpu.bench import Bench
    part = Part(**json.loads(told))
    results = known(part, Path(folder), environment())
    module = importlib.import_module(part.module)
    module.measure(Bench(torch.device(device), tiny=device == "cpu"), results, *part.arguments)
    results.finish()


if __name__ == "__main__":
    run_command(main)
