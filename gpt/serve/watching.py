"""Runs that are still in training: each new checkpoint takes the place of the one before."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path

from gpt.errors import UserError
from gpt.language_model import opened
from gpt.runs import checkpoint
from gpt.runs.saved_model import find_model
from gpt.serve.models import Opening, Served

EVERY = 2.0  # seconds between looks
TRIES = 3  # to read a checkpoint

_log = logging.getLogger("gpt.serve")


async def watch(models: dict[str, Served], how: Opening) -> None:
    """Replace models whose runs have a newer checkpoint, until cancelled. Texts that are being
    written are finished by the old one."""
    newest = {name: _newest(served) for name, served in models.items()}
    tries: Counter[tuple[str, Path | None]] = Counter()
    while True:
        await asyncio.sleep(EVERY)
        for name, served in list(models.items()):
            try:
                there = _newest(served)
                if there == newest[name] or tries[name, there] == TRIES:
                    continue
                tries[name, there] += 1
                models[name] = await asyncio.to_thread(_again, served, how, [*models.values()])
                newest[name] = there
                _log.info("%s: now %s", name, models[name].checkpoint)
            except Exception as error:  # damaged, thinned out meanwhile, too large for the memory
                _log.warning("%s: still %s: %s", name, served.checkpoint, error)


def mark_runs(models: dict[str, Served]) -> None:
    """Say which are watched. Raises UserError if none of them is a run's folder."""
    for served in models.values():
        served.watched = _newest(served) is not None
    if not any(served.watched for served in models.values()):
        raise UserError("--watch is for the folder of a run, and none of these is one")


def _newest(served: Served) -> Path | None:
    """The newest checkpoint, sound or not."""
    return next(iter(checkpoint.steps_in(Path(served.run) / "checkpoints").values()), None)


def _again(served: Served, how: Opening, models: list[Served]) -> Served:
    saved, taken = find_model(served.run), dict[int, int]()
    for each in models:  # the old one among them
        each.take(taken)
    return Served(served.name, opened(saved, *how), served.limits, served.run, saved.path.name,
                  watched=True, taken=taken)
