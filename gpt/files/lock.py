"""One process per folder."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from gpt.errors import UserError
from gpt.files.atomic import naming

LOCK = "lock"

_held: set[TextIO] = set()


class InUse(UserError):
    """Another process works in the folder."""


def _opened(folder: Path, advice: str) -> TextIO:
    try:
        return (folder / LOCK).open("a+", encoding="utf-8")
    except FileNotFoundError as error:
        raise InUse(f"{folder} is in use by another process, which has just removed it; wait for "
                    f"it, or {advice}") from error


def _let_go() -> None:
    """In a forked process: the lock is its parent's, and must not outlive it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold a folder's lock, which the kernel releases however the process ends.

    Raises InUse naming the process that has it. Where there is no flock (Windows), two
    processes in one folder are not noticed.
    """
    if fcntl is None:
        yield
        return
    with _opened(folder, advice) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUse(f"{folder} is in use by {file.read().strip() or 'another process'}; wait "
                        f"for it, or {advice}") from error
        except OSError:
            print(f"warning: the file system of {folder} has no locks, so a second process in this "
                  "folder would not be noticed", file=sys.stderr)
        with naming(folder / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def worked_in(folder: Path, or_elsewhere: bool = False) -> bool:
    """Whether the process that last locked a folder is still there; the lock is left alone.

    or_elsewhere: the answer for a process on another host.
    """
    try:
        said = (folder / LOCK).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if (match := re.fullmatch(r"process (\d{1,9}) on (.+)", said.strip())) is None:
        return False
    if match[2] != socket.gethostname():
        return or_elsewhere
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
