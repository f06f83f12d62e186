"""Finding the newest checkpoint that is sound."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt.errors import UserError
from gpt.files import as_json, read_json, sha256_of
from gpt.runs.checkpoint.layout import ADAPTER, FORMAT_VERSION, WEIGHTS, steps_in


def damage(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files; empty when it is sound."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        entries = manifest["files"]
        # A manifest cannot hold its own hash; but only these exact bytes say what it says.
        if (checkpoint / "manifest.json").read_bytes() != as_json(manifest).encode():
            return ["manifest.json is damaged"]
        if manifest["format_version"] != FORMAT_VERSION:
            return [f"manifest.json has format {manifest['format_version']}, not {FORMAT_VERSION}"]
        weights = ADAPTER if ADAPTER in entries else WEIGHTS
        wanted = {weights, "config.json", "state.json"} - set(entries)
        problems = [f"{name} is not in the manifest" for name in sorted(wanted)]
        for name, entry in entries.items():
            path = checkpoint / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                problems.append(f"{name!r} leads out of the folder")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
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
    """The checkpoint that RUN names: a run folder's newest sound one, or one checkpoint folder."""
    path = Path(run)
    if (path / "manifest.json").is_file() or (path / WEIGHTS).is_file():
        if problems := damage(path):
            raise UserError(f"the checkpoint {path} cannot be used: {'; '.join(problems)}; use "
                            "another one of the run")
        return path
    if not path.is_dir():
        raise UserError(f"there is no run {run}: give a run folder such as runs/quickstart, or one "
                        "of its checkpoints")
    if (checkpoint := newest_sound(path / "checkpoints")) is None:
        raise UserError(f"{run} has no checkpoints: it is no run, or nothing was saved in it yet")
    return checkpoint
