"""Saves of a checkpoint that other rows disturb, and what may be there afterwards."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import UserError, WorkFailed
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, tiny_gpt
from tests.tiny_runs import accumulate_gradients, batch_of, optimizer_of

Files = dict[str, bytes]
ERRORS = (OSError, UserError, WorkFailed)


@dataclass(frozen=True)
class Scenario:
    """A save. before: makes what is there; save: what is disturbed; states: of checkpoints, by
    step, that may be found afterwards; new: the step that is found if nothing is disturbed."""

    name: str
    before: Callable[[Path], None]
    save: Callable[[Path], None]
    old: int | None
    new: int

    def start(self, root: Path) -> Path:
        """A folder of checkpoints below root, as it is before the save."""
        folder = root / "run" / "checkpoints"
        if self.old is not None:
            folder.mkdir(parents=True)
            self.before(folder)
        return folder


def write(folder: Path, step: int, shard_size: int = 10**9) -> None:
    """Save the state of a step."""
    model, optimizer = _state(step)
    checkpoint.save(folder, model, optimizer, build_tokenizer("byte"),
                    TrainState(step, 100 * step, 1.5), shard_size=shard_size)


@functools.cache
def _state(step: int):
    model = tiny_gpt(vocab_size=257, n_layer=1, n_embd=16, n_head=2)
    optimizer = optimizer_of(model)
    for seed in range(step):
        accumulate_gradients(model, [batch_of(4, 8, seed, 257)], CPU)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def _older(folder: Path) -> None:
    write(folder, 1)


def _older_and_damaged(folder: Path) -> None:
    write(folder, 1)
    write(folder, 2)
    with (folder / "step-00000002" / "model.safetensors").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x77")


def _next_and_prune(folder: Path) -> None:
    write(folder, 2)
    checkpoint.prune(folder, 1, 2, set())


def _in_several_files(folder: Path) -> None:
    write(folder, 2, shard_size=30_000)
    checkpoint.prune(folder, 1, 2, set())


SCENARIOS = (
    Scenario("the first save", lambda folder: None, lambda folder: write(folder, 1), None, 1),
    Scenario("a save, and the one before is pruned", _older, _next_and_prune, 1, 2),
    Scenario("a save in several files", _older, _in_several_files, 1, 2),
    Scenario("a save over a damaged one", _older_and_damaged, lambda folder: write(folder, 2), 1,
             2),
)


def files_of(folder: Path) -> Files:
    """All files below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def undisturbed(scenario: Scenario) -> dict[int, Files]:
    """The checkpoints that may be found, by step."""
    with scratch() as root:
        folder = scenario.start(root)
        found = {} if scenario.old is None else {
            scenario.old: files_of(folder / f"step-{scenario.old:08d}")}
        scenario.save(folder)
        return found | {scenario.new: files_of(folder / f"step-{scenario.new:08d}")}


def found_step(folder: Path, known: dict[int, Files]) -> int | str | None:
    """The step of the checkpoint that a run would go on from (None: from none), or what is wrong
    with it."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            newest = checkpoint.newest_sound(folder)
        except UserError as error:
            return f"none is found: {error}"
    if newest is None:
        return None
    step = checkpoint.read_state(newest).step
    if step not in known or newest.name != f"step-{step:08d}":
        return f"{newest.name} is neither the old nor the new one"
    return step if files_of(newest) == known[step] else f"{newest.name} holds other bytes"


def is_old_or_new(scenario: Scenario, folder: Path, known: dict[int, Files], done: bool
                  ) -> str | None:
    """What is wrong with what is there; done: the save came to its end, so it has to be new."""
    found = found_step(folder, known)
    if isinstance(found, str):
        return found
    if done and found != scenario.new:
        return f"the save came to its end, and step {found} is found"
    return None if found in (scenario.old, scenario.new) else f"step {found} is found"


def goes_on(scenario: Scenario, folder: Path, known: dict[int, Files]) -> str | None:
    """What is wrong after the next start: leftovers, or the same save once more."""
    checkpoint.remove_leftovers(folder)
    if left := [path.name for path in folder.glob("*.tmp-*")]:
        return f"left over: {', '.join(left)}"
    scenario.save(folder)
    return is_old_or_new(scenario, folder, known, done=True)


def memory() -> Path | None:
    """Where files lie in memory: nothing here needs a disk. None where there is no such place."""
    return next((path for path in [Path("/dev/shm")] if path.is_dir()), None)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A fresh folder."""
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=memory()))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
