"""What was worked out before, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from gpt.errors import WorkFailed
from gpt.files.atomic import write_atomically

_DIGEST = 32  # bytes of a SHA-256, which stands before what is kept


def cache_folder() -> Path | None:
    """~/.cache/gpt-toolkit, or in XDG_CACHE_HOME: this user's alone; None where that cannot be."""
    with contextlib.suppress(OSError, RuntimeError):  # which says that there is no home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-toolkit"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = cache.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(cache, os.W_OK):
            return cache
    return None


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """What takes long to make, from the cache where it lies there whole.

    key: a file name that says all that it depends on, as a hash does.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    file = folder / key
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        if data[:_DIGEST] == hashlib.sha256(data[_DIGEST:]).digest():
            return data[_DIGEST:]
    made = make()
    with contextlib.suppress(OSError, WorkFailed):  # of a full disk: it is made again next time
        write_atomically(file, hashlib.sha256(made).digest() + made)
    return made
