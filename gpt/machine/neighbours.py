"""Other processes on the same cores: while there are any, OpenMP's threads do not spin.

Between two pieces of parallel work the threads of libgomp, with which torch and model.c compute,
spin for milliseconds. That is fastest while nobody else wants their cores. Beside another process
it takes a core from the very thread that is waited for, and two trainings at once stand still
(measured: benchmarks/neighbours.py). libgomp hardly spins once it has more threads than there are
cores; it cannot be asked to, so a team of threads that do nothing is kept meanwhile. How work is
shared among threads, and with it every result, stays the same.
Source: do_spin in libgomp/config/linux/wait.h of GCC.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

SECONDS = 0.2  # between two looks
BUSY = 0.15  # of the time, all threads together: from here on others want the cores
QUIET, LOOKS = 0.05, 5  # less than this over so many looks: they are gone

_TASKS = Path("/proc/self/task")
_nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


@functools.cache
def heed_other_processes() -> None:
    """From now on, look whether others are busy. For all that computes on processors; once is
    enough. Only Linux says what is looked at, and only libgomp's threads are told."""
    start_team = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
    if start_team is not None and _TASKS.is_dir() and cores() > 1:
        threading.Thread(target=_watch, args=(start_team,), daemon=True, name="neighbours").start()


def _watch(start_team: Callable[..., None]) -> None:
    looks, leave = Looks(time.monotonic(), waited_seconds()), None
    while True:
        time.sleep(SECONDS)
        crowded = looks.crowded(time.monotonic(), waited_seconds())
        if crowded and leave is None:
            leave = threading.Event()
            threading.Thread(target=park, args=(start_team, leave), daemon=True).start()
        elif not crowded and leave is not None:
            leave.set()
            leave = None


class Looks:
    """Whether other processes want the cores: soon seen, and believed to be over after a while."""

    def __init__(self, now: float, waited: float):
        self._seen = deque([(now, waited)], LOOKS + 1)
        self._crowded = False

    def crowded(self, now: float, waited: float) -> bool:
        """now, waited: seconds of a clock, and those of `waited_seconds`."""
        self._seen.append((now, waited))
        if self._crowded:
            is_known = len(self._seen) > LOOKS
            self._crowded = not (is_known and self._share(self._seen[0]) < QUIET)
        else:
            self._crowded = self._share(self._seen[-2]) > BUSY
        return self._crowded

    def _share(self, since: tuple[float, float]) -> float:
        now, waited = self._seen[-1]
        return (waited - since[1]) / max(now - since[0], 1e-9)


def waited_seconds() -> float:
    """How long this process's threads could have computed and had no core, all together."""
    waited = 0
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError, IndexError):  # a thread that has just ended
            waited += int((task / "schedstat").read_bytes().split()[1])
    return waited / 1e9


def park(start_team: Callable[..., None], leave: threading.Event) -> None:
    """Keep more threads than there are cores, which sleep, until they are to leave."""
    start_team(_nothing, None, cores() + 1, 0)
    leave.wait()


def let_others_go_first() -> None:
    """This thread is to compute when nobody else wants to. (Linux alone knows this of a thread.)"""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def cores() -> int:
    """Of the machine, those that this process may use; 1 where that is not known."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
