"""How glibc's malloc treats large blocks. No effect on other systems."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks instead of returning them to the kernel: for training.

    A training step frees and asks for the same megabytes again and again, and every fresh page
    costs a fault (measured: benchmarks/allocator.py).
    """
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, 2**31 - 1)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
