"""Whole runs that other rows disturb: a tiny dataset, commands, and what came of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.faults.rows.saves import Files, files_of
from tests.faults.warm import Done, command

SETTINGS = ("data.dataset=data", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
            "model.block_size=16", "model.dropout=0.1", "train.batch_size=4",
            "train.micro_batch_size=3", "eval.every_steps=10", "eval.max_tokens=200",
            "checkpoint.every_steps=3", "checkpoint.keep=2", "run.device=cpu",
            "optim.warmup_steps=2", "optim.schedule=constant", "run.dtype=float32",
            "run.compile=false", "log.samples_every_steps=null", "log.report=false")
_CLOCKS = {"elapsed_seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "data_seconds"}


def dataset(folder: Path) -> None:
    """A small dataset, folder/data."""
    words = "".join(random.Random(0).choices("the quick brown fox\n", k=4000))
    (folder / "text.txt").write_text(words)
    done = command("data/prepare.py", "text.txt", "tokenizer=char", "out=data", folder=folder)
    assert done.code == 0, done.err


def train(folder: Path, name: str, steps: int, *settings: str, **environment: str | None) -> Done:
    """train.py, to the end of so many steps."""
    return command("train.py", *words(name, steps, *settings), folder=folder, **environment)


def in_two_parts(folder: Path, name: str) -> None:
    """A run of 6 steps that goes on to 12, undisturbed."""
    for steps in (6, 12):
        done = train(folder, name, steps)
        assert done.code == 0, done.err


def words(name: str, steps: int, *settings: str) -> tuple[str, ...]:
    """What train.py is given for a run."""
    return (*SETTINGS, f"train.steps={steps}", f"run.name={name}", *settings)


def outcome(run: Path) -> dict[str, Any]:
    """The newest checkpoint, byte by byte, which is the best, and all that was logged; without
    what clocks say. Lines that note a save are left out: a kill may fall between both; and so are
    warnings, of what was made to fail."""
    checkpoints = run / "checkpoints"
    last = max(checkpoints.glob("step-????????"))
    files: Files = files_of(last)
    for name in ("state.json", "manifest.json"):
        files[name] = json.dumps(_without_clocks(json.loads(files[name]))).encode()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"step": last.name, "best": (checkpoints / "best.json").read_text(),
            "logged": [_without_clocks(line) for line in lines
                       if line["event"] not in ("save", "warning")],
            **files}


def different(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """What is not the same in two outcomes."""
    names = [name for name in expected.keys() | found.keys()
             if expected.get(name) != found.get(name)]
    return f"another {', '.join(sorted(names))}" if names else None


def _without_clocks(value: Any) -> Any:
    """A JSON value without seconds, and without the hash of the file that holds them."""
    if isinstance(value, dict):
        return {key: _without_clocks(each) for key, each in value.items()
                if key not in _CLOCKS | {"state.json"}}
    return value
