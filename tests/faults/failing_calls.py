"""What failing_calls.c does, asked for from Python: file operations that fail, or are recorded.

It is compiled when it is first needed, and preloaded into a process by its environment. There, and
in what is forked from it, `failing` and `recording` say for how long.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("failing_calls.c")
_BUILD = Path(__file__).resolve().parents[2] / "build"
KINDS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "read", "truncate")  # as in C
WRITING = ("open", "write", "fsync", "rename", "unlink", "mkdir", "truncate")
_FLAGS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE")


@dataclass(frozen=True)
class Call:
    """One that was recorded. number: an open's flags, a write's offset, a truncate's size."""

    kind: str
    number: int
    path: str
    other: str
    data: bytes


class Seen:
    """What became of a stretch of calls: how many there were, and where the last failure was."""

    calls = 0
    where = ""


def compiler() -> list[str] | None:
    """The C compiler; None if there is none."""
    words = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    return words if shutil.which(words[0]) else None


def library() -> Path:
    """The compiled file, which later calls find."""
    words = compiler()
    assert words is not None, "there is no C compiler"
    known = "\0".join([*words, *_FLAGS, SOURCE.read_text(encoding="utf-8")])
    target = _BUILD / f"failing-calls-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "made.so"
            subprocess.run([*words, *_FLAGS, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"],
                           check=True)
            made.replace(target)
    return target


def preloaded(**asked: object) -> dict[str, str]:
    """Variables for a process in which calls can fail. asked: FOLDER, KINDS, AT, ERROR, LASTS,
    ROOM, for one that knows nothing of this."""
    kinds = asked.pop("KINDS", ())
    assert isinstance(kinds, tuple)
    variables = {"KINDS": _bits(kinds), **asked} if asked else {}
    return {"LD_PRELOAD": str(library()),
            **{f"FAILING_CALLS_{name}": str(value) for name, value in variables.items()}}


@contextlib.contextmanager
def failing(folder: Path, kinds: tuple[str, ...], at: int = -1, error: int = 0,
            lasts: bool = False, room: int = -1) -> Iterator[Seen]:
    """Let one call below a folder fail, or all from that one on (lasts), or those that write once
    so many bytes are written (room). at=-1: count alone."""
    yield from _asked(folder, _bits(kinds), at, error, lasts, room, -1)


@contextlib.contextmanager
def recording(folder: Path, log: int) -> Iterator[Seen]:
    """Write all that changes something below a folder into a descriptor, for `calls_of`."""
    yield from _asked(folder, _bits(WRITING), -1, 0, False, -1, log)


def _asked(folder: Path, kinds: int, at: int, error: int, lasts: bool, room: int, log: int
           ) -> Iterator[Seen]:
    seen, real = Seen(), os.path.realpath(folder)
    _shim().failing_calls_begin(real.encode(), kinds, at, error, int(lasts),
                                ctypes.c_longlong(room), log)
    try:
        yield seen
    finally:
        seen.calls = _shim().failing_calls_end()
        seen.where = _shim().failing_calls_where().decode()


@functools.cache
def _shim() -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.failing_calls_begin.argtypes = [
        ctypes.c_char_p, ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int,
        ctypes.c_longlong, ctypes.c_int]
    shim.failing_calls_end.restype = ctypes.c_long
    shim.failing_calls_where.restype = ctypes.c_char_p
    return shim


def _bits(kinds: tuple[str, ...]) -> int:
    return sum(1 << KINDS.index(kind) for kind in kinds)


def calls_of(log: bytes) -> list[Call]:
    """What a log holds, in order."""
    calls, at = [], 0
    while at < len(log):
        end = log.index(b"\n", at)
        kind, number, size, path, other = log[at:end].decode().split("\t")
        at = end + 1 + int(size)
        calls.append(Call(kind, int(number), path, other, log[end + 1:at]))
    return calls
