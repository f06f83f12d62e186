"""How glibc's malloc treats large blocks. No effect on other systems."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks instead of returning them to the kernel: for training.

    A training step frees and asks for the same megabytes again and again, and every fresh page
    costs a fault (measured: benchmarks/allocator.py).
    """
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return large blocks to the kernel at once: for streaming through a corpus.

    Otherwise malloc keeps larger and larger blocks in its heap, which then falls into pieces: a
    process that holds 50 MB at any time grows by half a megabyte per megabyte read.
    """
    _set(_MMAP_THRESHOLD, 1 << 18)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
