"""Whole training runs, as the benchmarks make them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    seconds: float  # of the whole process
    loss: float  # validation, nats per token
    bits_per_byte: float
    tokens: int
    steps: int
    flops: float  # of training: tokens times model FLOPs per token


@dataclass(frozen=True)
class Chosen:
    """What --rounds=N and --arms=A,B choose.

    is_whole: all arms, and only then is a result written. rest: other words of the command line.
    """

    arms: list[str]
    rounds: int
    is_whole: bool
    rest: list[str]


def choose(argv: Sequence[str], arms: Sequence[str], rounds: int) -> Chosen:
    """Read a benchmark's command line. Raises UserError.

    arms, rounds: all there are, and how many when nothing is said.
    """
    given = {name: [word.partition("=")[2] for word in argv if word.startswith(f"--{name}=")][-1:]
             for name in ("rounds", "arms")}
    for text in given["rounds"]:
        if not text.isdecimal() or not int(text):
            raise UserError(f"--rounds={text}: give a number of rounds, such as --rounds=1")
        rounds = int(text)
    chosen = [arm for text in given["arms"] for arm in _arms_in(text, arms)] or list(arms)
    rest = [word for word in argv if not word.startswith(("--rounds=", "--arms="))]
    return Chosen(chosen, rounds, set(chosen) == set(arms), rest)


def _arms_in(text: str, arms: Sequence[str]) -> Iterator[str]:
    """Arms between commas; some have a comma in their name."""
    while text:
        arm = next((arm for arm in sorted(arms, key=len, reverse=True)
                    if f"{text},".startswith(f"{arm},")), None)
        if arm is None:
            raise UserError(f"--arms: there is no arm {text!r}; choose from {'; '.join(arms)}")
        yield arm
        text = text[len(arm):].lstrip(", ")


def shakespeare(chosen: Chosen) -> Path:
    """The text that a command line names, or the one beside the project. Raises UserError."""
    path = (Path(chosen.rest[0]) if chosen.rest else
            ROOT.parent / "shared" / "data" / "tinyshakespeare.txt")
    if not path.is_file():
        raise UserError(f"{path} is not there; give the path of tinyshakespeare.txt")
    return path


def spread(values: Sequence[float], form: str) -> str:
    """Median, and from least to most: 1.65 (1.64 to 1.67)."""
    return (f"{statistics.median(values):{form}} ({min(values):{form}} to "
            f"{max(values):{form}})")


def no_more(chosen: Chosen) -> None:
    """Raises UserError for a word that means nothing to a benchmark."""
    if chosen.rest:
        raise UserError(f"{chosen.rest[0]!r} means nothing here; --rounds=N and --arms=A,B do")


def train(folder: Path, config: str, name: str, *overrides: str,
          script: Sequence[str] = ("train.py",)) -> Outcome:
    """Run train.py, or a script that wraps it, in a folder; `config` lies in the project."""
    start = time.monotonic()
    run_script(folder, *script, str(ROOT / config), f"run.name={name}", *overrides)
    seconds = time.monotonic() - start
    lines = events(folder / "runs" / name)
    score = [line for line in lines if line["event"] == "eval"][-1]
    steps = [line for line in lines if line["event"] == "train"]
    return Outcome(seconds, score["val_loss"], score["val_bits_per_byte"], score["tokens"],
                   score["step"], score["tokens"] * steps[-1]["flops_per_token"])


def run_script(folder: Path, script: str, *arguments: str) -> None:
    """Run a Python script of the project in a folder; its errors show, its output does not."""
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=folder, check=False,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed: {done.stderr}")


def arms_in_turn(script: str, arms: Sequence[str], folder: str, rounds: int
                 ) -> dict[str, list[dict[str, float]]]:
    """What each arm prints last, as JSON, round by round: `script --arm ARM folder`, each in a
    process of its own."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            done = subprocess.run([sys.executable, script, "--arm", arm, folder],
                                  capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{arm}: {done.stderr}")
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
