"""Signals that ask for a stop: noticed, so that work can be saved before leaving."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpt import launcher
from gpt.errors import STOPS, Stopped

T = TypeVar("T")


def itself(heard: T) -> T:
    """What one process has heard, where no other one has to stop at the same place."""
    return heard


class Interrupted(Stopped):
    """A signal asks to stop, and what was being done leaves nothing to save."""


@dataclass
class Stop:
    """Whether a signal has asked to stop.

    everywhere: the signal that all processes of a run know that one of them has heard. heard: from
    what this process has heard, what those have that compute in step with it.
    """

    signal_name: str | None = None
    everywhere: str | None = None
    heard: Callable[[str | None], str | None] = field(default=itself, repr=False)

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler: the first request saves and stops, a second leaves at once."""
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name

    def raise_if_asked(self) -> None:
        """Raises Interrupted once a signal has asked to stop: for work that leaves no trace."""
        self.signal_name = self.heard(self.signal_name)
        if self.signal_name is not None:
            raise Interrupted(f"stopped by {self.signal_name} before the first step; to begin "
                              f"again: {resume_command()}")


@contextlib.contextmanager
def listening(stop: Stop) -> Iterator[Stop]:
    """Send signals to `stop` while the block runs. (Only the main thread can listen.)"""
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [number for name in STOPS if (number := getattr(signal, name, None))]
    if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(hangup) == signal.SIG_IGN:
        numbers.remove(hangup)  # under nohup
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def signal_number(name: str | None) -> int:
    """Of a signal, 0 for none: a number that ranks can compare."""
    return 0 if name is None else int(signal.Signals[name])


def signal_name(number: float) -> str | None:
    """The signal of a number, None for 0."""
    return signal.Signals(int(number)).name if number else None


def resume_command(changes: dict[str, str] | None = None) -> str:
    """The command that continues this work: the one that started it, but for where it began.

    changes: fields that are to have another value.
    """
    changes, words, given = changes or {}, launched_by(), iter(sys.argv)
    for word in given:
        field, equals, _ = word.removeprefix("--").partition("=")
        if field not in {"run.resume", *changes}:
            words.append(word)
        elif not equals:  # --section.field VALUE
            next(given, None)
    return shlex.join([*words, *(f"{field}={value}" for field, value in changes.items())])


def launched_by() -> list[str]:
    """The words before a script's name with which this process was started, as far as is known."""
    here = launcher.place()
    if here == launcher.ALONE:
        return ["python"]
    if here.launcher != "torchrun":
        return [here.launcher, "-n", str(here.world_size), "python"]
    hosts = -(-here.world_size // here.local_size)
    return ["torchrun", *([f"--nnodes={hosts}", "…"] if hosts > 1 else []),
            f"--nproc-per-node={here.local_size}"]
