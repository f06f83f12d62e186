"""Runs, checkpoints and other folders that somebody wrote with ill intent, whose hashes fit."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt.files import as_json
from gpt.shards import read_manifest
from gpt.shards.reading import own_hash
from tests.faults.rows import runs
from tests.faults.rows.saves import memory
from tests.faults.warm import Done, command

LONGEST = 1.0  # seconds of computing, to refuse what is hostile
MOST_MEGABYTES = 200.0


class Canary:
    """An object whose unpickling writes a file."""

    def __init__(self, place: Path):
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._place, "it ran")


def pickles(place: Path, folder: Path) -> dict[str, bytes]:
    """Hostile files by kind: plain, as torch saves, and as numpy does."""
    plain = pickle.dumps(Canary(place), protocol=2)
    archive = folder / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", plain)
        file.writestr("archive/version", "3\n")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return {"a pickle": plain, "torch": archive.read_bytes(),
            "numpy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + plain}


@functools.cache
def world() -> Path:
    """A folder with data, runs/run, runs/adapted, hf, a task, and a text, while this process
    lives."""
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=memory()))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = root / "world"
    folder.mkdir()
    runs.dataset(folder)
    (folder / "task.jsonl").write_text("".join(
        json.dumps({"prompt": f"the {i}", "completion": "fox"}) + "\n" for i in range(8)))
    (folder / "some.txt").write_text("the quick brown fox\n" * 20)
    assert runs.train(folder, "run", 3).code == 0
    for words in (("finetune.py", *finetuning("adapted"), "finetune.method=lora"),
                  ("gpt", "export", "runs/adapted/base", "hf", "--format", "hf"),
                  ("gpt", "export", "runs/adapted", "peft", "--format", "peft", "--base", "hf")):
        done = command(*words, folder=folder)
        assert done.code == 0, f"{words}: {done.err}"
    return folder


def finetuning(name: str) -> tuple[str, ...]:
    """What finetune.py is given."""
    return ("finetune.from=runs/run", "finetune.data=task.jsonl", f"run.name={name}",
            "train.epochs=1", "run.device=cpu", "run.dtype=float32", "run.compile=false")


def copied(target: Path) -> Path:
    """A fresh copy of the world."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(world(), target)
    return target


def checkpoint_of(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("step-????????"))


def seal(checkpoint: Path) -> None:
    """Write the manifest that fits the files that are there."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(as_json(manifest))


def seal_dataset(data: Path) -> None:
    """The same for a dataset."""
    def of(name: str) -> str:
        return hashlib.sha256((data / name).read_bytes()).hexdigest()

    manifest = read_manifest(data)
    for split in manifest.splits.values():
        for shard in split.shards:
            shard.sha256 = of(shard.file)
            shard.offsets_sha256 = of(shard.file.replace(".bin", ".offsets"))
    manifest.files = {name: of(name) for name in manifest.files}
    manifest.sha256 = own_hash(manifest)
    (data / "dataset.json").write_text(as_json(manifest.model_dump()))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file holds, in place or as returned."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(as_json(value if changed is None else changed))


def refused(done: Done, what: str) -> str | None:
    """What is wrong with how something hostile was refused."""
    problems = []
    if not done.is_one_line:
        problems.append(f"code {done.code}: {done.err[-300:]!r}")
    if done.seconds > LONGEST:
        problems.append(f"after {done.seconds:.1f} s")
    if done.megabytes > MOST_MEGABYTES:
        problems.append(f"with {done.megabytes:.0f} MB")
    return f"{what}: {', '.join(problems)}" if problems else None
