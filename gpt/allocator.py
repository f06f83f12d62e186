"""How glibc's malloc treats large blocks. No effect on other systems."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks instead of returning them to the kernel: for training.

    A training step frees and asks for the same megabytes again and again, and every fresh page
    costs a fault (measured: benchmarks/allocator.py).
    """
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, 2**31 - 1)


def share_one_arena() -> None:
    """Let all threads allocate from one heap: for streaming through a corpus.

    What one thread allocates and another frees would leave holes in a heap of its own, and a
    process that holds little at any time would grow with what it has read.
    """
    _set(_ARENA_MAX, 1)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
