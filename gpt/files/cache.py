"""What was worked out before, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from gpt.errors import WorkFailed
from gpt.files.atomic import write_atomically


def cache_folder() -> Path | None:
    """~/.cache/gpt-toolkit, or in XDG_CACHE_HOME: this user's alone; None where that cannot be."""
    with contextlib.suppress(OSError, RuntimeError):  # which says that there is no home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-toolkit"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = cache.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(cache, os.W_OK):
            return cache
    return None


def remembered(key: str, found: Callable[[], bool]) -> bool:
    """An answer that takes long to find, from the cache where it is known.

    key: a file name that says all that the answer depends on, as a hash does.
    """
    folder = cache_folder()
    if folder is None:
        return found()
    file = folder / key
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (known := file.read_text(encoding="ascii")) in ("yes", "no"):
            return known == "yes"
    answer = found()
    with contextlib.suppress(OSError, WorkFailed):  # of a full disk: it is found again next time
        write_atomically(file, "yes" if answer else "no")
    return answer
