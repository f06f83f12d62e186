"""Finding the newest checkpoint that is sound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gpt.errors import UserError
from gpt.files import as_json, read_json, sha256_of
from gpt.runs.checkpoint.layout import FORMAT_VERSION, read_best, read_state
from gpt.runs.manifest import ADAPTER, WEIGHTS, parts_of, steps_in


def damage(checkpoint: Path, tell: Callable[[int], object] = lambda read: None) -> list[str]:
    """What is wrong with a checkpoint's files; empty when it is sound. tell: told of the bytes that
    were read."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        entries = manifest["files"]
        # A manifest cannot hold its own hash; but only these exact bytes say what it says.
        if (checkpoint / "manifest.json").read_bytes() != as_json(manifest).encode():
            return ["manifest.json is damaged"]
        if manifest["format_version"] != FORMAT_VERSION:
            return [f"manifest.json has format {manifest['format_version']}, not {FORMAT_VERSION}"]
        weights = parts_of(ADAPTER, entries) or parts_of(WEIGHTS, entries) or [WEIGHTS]
        wanted = {weights[0], "config.json", "state.json"} - set(entries)
        problems = [f"{name} is not in the manifest" for name in sorted(wanted)]
        for name, entry in entries.items():
            path = checkpoint / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                problems.append(f"{name!r} leads out of the folder")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry["bytes"] or sha256_of(path, tell) != entry["sha256"]:
                problems.append(f"{name} is damaged")
        return problems
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"manifest.json is missing or damaged ({error})"]


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; None if there never was one.

    A damaged one is named and passed over. Raises UserError if there are some and none is sound.
    """
    checkpoints = steps_in(folder)
    for path in checkpoints.values():
        if not (problems := damage(path)):
            return path
        print(f"warning: {path} is passed over: {'; '.join(problems)}", file=sys.stderr)
    if checkpoints:
        raise UserError(f"none of the {len(checkpoints)} checkpoints in {folder} is sound; restore "
                        "one from a backup, or start a new run with another run.name")
    return None


def find(run: str) -> Path:
    """The checkpoint that RUN names: one checkpoint's folder, or of a run's folder the newest sound
    one; of a run that ended since nothing better was found, the best. RUN@newest, RUN@best and
    RUN@step-N choose."""
    path = Path(run)
    if (path / "manifest.json").is_file() or (path / WEIGHTS).is_file():
        return _sound(path)
    folder, at, which = run.rpartition("@")
    if path.is_dir() or not at or not Path(folder).is_dir():
        folder, which = run, ""
    if path.is_file():
        what = "a GGUF file, which" if path.suffix == ".gguf" else "a file, and"
        raise UserError(f"{run} is {what} cannot be opened as a run: give a run folder, one of its "
                        "checkpoints, or the Hugging Face folder that it was made from")
    if not Path(folder).is_dir():
        raise UserError(f"there is no run {run}: give a run folder such as runs/quickstart, or one "
                        "of its checkpoints")
    checkpoints = Path(folder) / "checkpoints"
    if which not in ("", "newest"):
        return _sound(_chosen(folder, which))
    if (newest := newest_sound(checkpoints)) is None:
        raise UserError(f"{run} has no checkpoints: it is no run, or nothing was saved in it yet")
    best = read_best(checkpoints, read_state(newest).step)
    there = steps_in(checkpoints)
    if which or best is None or best.step not in there or best.ended_at != read_state(newest).step:
        return newest
    if problems := damage(there[best.step]):
        print(f"warning: {there[best.step]}, the best, is passed over: {'; '.join(problems)}",
              file=sys.stderr)
        return newest
    print(f"note: {folder} ended at step {best.ended_at}, since nothing better was found after "
          f"step {best.step}, which is taken; {folder}@newest is the last one", file=sys.stderr)
    return there[best.step]


def _chosen(folder: str, which: str) -> Path:
    """The checkpoint that stands behind RUN@."""
    checkpoints = Path(folder) / "checkpoints"
    there = steps_in(checkpoints)
    if which == "best":
        best = read_best(checkpoints, max(there, default=0))
        if best is None or best.step not in there:
            raise UserError(f"{folder} has no best checkpoint: none was evaluated")
        return there[best.step]
    step = which.removeprefix("step-")
    if not step.isdecimal() or int(step) not in there:
        known = ", ".join(f"@step-{step}" for step in there)
        raise UserError(f"{folder}@{which}: there is no such checkpoint; choose from @newest, @best"
                        f"{', ' * bool(known)}{known}")
    return there[int(step)]


def _sound(path: Path) -> Path:
    if problems := damage(path):
        raise UserError(f"the checkpoint {path} cannot be used: {'; '.join(problems)}; use "
                        "another one of the run")
    return path
