"""Writing files so that a crash leaves the old state or the new one, and naming what they hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt.errors import UserError, WorkFailed

FULL = (errno.ENOSPC, errno.EDQUOT)

SUMS = "SHA256SUMS"  # of an export
MOST_LEVELS = 100  # of nested JSON


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace a file: write beside it, flush to disk, rename, flush the folder."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        data = data.encode() if isinstance(data, str) else data
        with naming(path, len(data)):
            temporary.write_bytes(data)
            flush_to_disk(temporary)
            temporary.replace(path)
    except (OSError, WorkFailed):
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def no_room(path: Path, size: int, error: OSError) -> WorkFailed:
    """What is said where a disk has no room for so many bytes."""
    free = shutil.disk_usage(path.parent).free
    return WorkFailed(f"cannot write {path}: {error.strerror} ({size:,} bytes are needed, {free:,} "
                      "are free); make room and run the same command again")


@contextlib.contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Let an error of the operating system say which file it is about: a full disk does not.

    size: bytes that are written. Raises WorkFailed where the disk has no room for them.
    """
    try:
        yield
    except OSError as error:
        if size is not None and error.errno in FULL:
            raise no_room(path, size, error) from error
        error.filename = error.filename or str(path)
        raise


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; that each is there is flushed to disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_to_disk(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` for a JSON value."""
    write_atomically(path, as_json(value))


def as_json(value: Any) -> str:
    """JSON as all our files have it. (File names that are not UTF-8 are written escaped.)"""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text if _is_utf8(text) else json.dumps(value, indent=2) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder's list of names."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, tell: Callable[[int], object] = lambda read: None) -> str:
    """SHA-256 of a file, as hexadecimal text. tell: told of the bytes that were read."""
    with path.open("rb") as file, naming(path):
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
            tell(len(block))
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS, which `sha256sum -c` reads, too: of all other files in a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                   if path.is_file() and path.name != SUMS)
    write_atomically(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name}\n"
                                            for name in names))


def differing(folder: Path, tell: Callable[[int], object] = lambda read: None) -> list[str]:
    """What of a folder is not as its SHA256SUMS says; empty when all is."""
    problems = []
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        for line in lines:
            sha256, _, name = line.partition("  ")
            path = folder / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                problems.append(f"{name!r} leads out of the folder")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif sha256_of(path, tell) != sha256:
                problems.append(f"{name} is damaged")
    except (OSError, ValueError) as error:
        return [f"{SUMS} is damaged ({error})"]
    return problems if lines else [f"{SUMS} is empty"]


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError naming it, also for one that nests deeper than others
    can go through it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if nests(found, MOST_LEVELS):
            raise RecursionError(f"more than {MOST_LEVELS} levels")
        return found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not valid JSON ({error})") from error


def nests(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than so many times."""
    level = [value]
    for _ in range(levels + 1):
        level = [inner for outer in level if isinstance(outer, dict | list)
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return bool(level)
