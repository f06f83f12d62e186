"""Which checkpoints a run has, and which weights they hold, by what is written down of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from gpt.errors import UserError
from gpt.files import read_json

WEIGHTS, ADAPTER = "model.safetensors", "adapter.safetensors"
_NAME = re.compile(r"step-([0-9]{8,18})")


def steps_in(folder: Path) -> dict[int, Path]:
    """Checkpoints in a folder by step, newest first."""
    found = {int(match[1]): path for path in (folder.iterdir() if folder.is_dir() else ())
             if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def weight_hash(checkpoint: Path) -> str:
    """SHA-256 of the weights, as the manifest has it: says which model was used.

    Raises UserError if the checkpoint does not say it.
    """
    try:
        files = read_json(checkpoint / "manifest.json")["files"]
        adapters = parts_of(ADAPTER, files)
        hashes = [str(files[name]["sha256"]) for name in adapters or parts_of(WEIGHTS, files)]
        if adapters:
            hashes.insert(0, str(read_json(checkpoint / "config.json")["base_sha256"]))
    except (LookupError, TypeError) as error:
        raise UserError(f"{checkpoint} does not say which weights it holds; use another checkpoint "
                        "of the run") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def parts_of(name: str, files: Collection[str]) -> list[str]:
    """Of the files of a checkpoint those that hold the tensors of `name`: itself, or several."""
    stem, suffix = name.rsplit(".", 1)
    parts = re.compile(rf"{stem}-\d{{5,}}-of-\d{{5,}}\.{suffix}")
    return [file for file in sorted(files) if file == name or parts.fullmatch(file)]
