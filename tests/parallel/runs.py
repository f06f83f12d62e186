"""Whole runs on several ranks, and what came of them."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt.batches import Batches
from gpt.errors import Stopped
from gpt.machine.device import Machine
from gpt.runs import checkpoint
from tests.parallel.processes import run_ranks

Read = dict[int, list[bytes]]  # by step: the rows that were read


class Outcome(NamedTuple):
    """What a run logged at each step, its last weights, and which rows each step read."""

    losses: list[float]
    norms: list[float]
    scores: list[dict[str, float]]
    weights: dict[str, Tensor]
    rows: Read
    said: str


def train(ranks: int, script: str, folder: Path, *settings: str,
          stop_at: int | None = None) -> Outcome:
    """Run a root script on so many ranks in a folder, and read what it left in runs/NAME.

    stop_at: after this many steps all stop, since the last rank hears SIGTERM in the last of them.
    """
    name = next(each.removeprefix("run.name=") for each in settings
                if each.startswith("run.name="))
    answers = run_ranks(ranks, _script, script, str(folder), settings, stop_at, join=False)
    return outcome(folder / "runs" / name, [read for read, _ in answers], answers[0][1])


def outcome(run: Path, reads: Sequence[Read] = (), said: str = "") -> Outcome:
    """What a run's folder holds."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["event"] == "train"]
    newest = checkpoint.newest_sound(run / "checkpoints")
    assert newest is not None
    weights: dict[str, Tensor] = {}
    for file in sorted(newest.glob("*.safetensors")):
        if not file.name.startswith("optimizer"):
            weights |= load_file(file)
    rows: Read = {}
    for read in reads:  # ranks that share a sequence read the same rows
        for step, mine in read.items():
            rows.setdefault(step, []).extend(row for row in mine if row not in rows.get(step, []))
    return Outcome([event["loss"] for event in trained], [event["grad_norm"] for event in trained],
                   [{key: value for key, value in event.items() if key.startswith("val_")}
                    for event in events if event["event"] == "eval"], weights, rows, said)


def _script(script: str, folder: str, settings: Sequence[str], stop_at: int | None
            ) -> tuple[Read, str]:
    """On each rank: (the rows that it read, what it printed)"""
    os.chdir(folder)
    read: Read = {}
    whole, seeds, last = Batches.step, Machine.seed_step, int(os.environ["WORLD_SIZE"]) - 1

    def step(self: Batches, number: int) -> Any:
        batch = whole(self, number)
        read[number] = [row.numpy().tobytes() for part in batch for row in part.inputs]
        return batch

    def seed_step(self: Machine, *numbers: int) -> None:
        if stop_at is not None and numbers == (stop_at - 1,) and self.ranks.rank == last:
            os.kill(os.getpid(), signal.SIGTERM)
        seeds(self, *numbers)

    Batches.step, Machine.seed_step = step, seed_step  # type: ignore[method-assign]
    try:
        ends = contextlib.nullcontext() if stop_at is None else pytest.raises(Stopped)
        with contextlib.redirect_stdout(io.StringIO()) as said, ends:
            importlib.import_module(script).main([*settings])
    finally:
        Batches.step, Machine.seed_step = whole, seeds  # type: ignore[method-assign]
    return read, said.getvalue()


def assert_same_run(found: Outcome, expected: Outcome, tolerance: float = 2e-5,
                    padded: bool = False) -> None:
    """The same sequences in each step, exactly; losses, norms, scores and weights to rounding.

    padded: rows are padded to the longest that a rank has read, and so not the same bytes.
    """
    assert found.rows.keys() == expected.rows.keys()
    if not padded:
        for step, rows in expected.rows.items():
            assert sorted(found.rows[step]) == sorted(rows)
    torch.testing.assert_close(found.losses, expected.losses, rtol=tolerance, atol=0)
    torch.testing.assert_close(found.norms, expected.norms, rtol=10 * tolerance, atol=0)
    assert len(found.scores) == len(expected.scores)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        assert ours == _about(theirs, 10 * tolerance)
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0,
                                   atol=tolerance * max(1.0, float(weight.abs().max())))


def _about(figures: dict[str, float], tolerance: float) -> Any:
    return pytest.approx(figures, rel=tolerance)
