"""Writing files so that a crash leaves the old state or the new one, and naming what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.errors import UserError


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace a file: write beside it, flush to disk, rename, flush the folder."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path):
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            flush_to_disk(temporary)
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system say which file it is about: a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not valid JSON ({error})") from error
