"""Signals that ask for a stop: noticed, so that work can be saved before leaving."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt.errors import Stopped

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


class Interrupted(Stopped):
    """A signal asks to stop, and what was being done leaves nothing to save."""


@dataclass
class Stop:
    """Whether a signal has asked to stop."""

    signal_name: str | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler: the first request saves and stops, a second leaves at once."""
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name

    def raise_if_asked(self) -> None:
        """Raises Interrupted once a signal has asked to stop: for work that leaves no trace."""
        if self.signal_name is not None:
            raise Interrupted(f"stopped by {self.signal_name} before the first step; to begin "
                              f"again: {resume_command()}")


@contextlib.contextmanager
def listening(stop: Stop) -> Iterator[Stop]:
    """Send signals to `stop` while the block runs. (Only the main thread can listen.)"""
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [number for name in _NAMES if (number := getattr(signal, name, None))]
    if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(hangup) == signal.SIG_IGN:
        numbers.remove(hangup)  # under nohup
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def resume_command(changes: dict[str, str] | None = None) -> str:
    """The command that continues this work: the one that started it, but for where it began.

    changes: fields that are to have another value.
    """
    changes, words, given = changes or {}, ["python"], iter(sys.argv)
    for word in given:
        field, equals, _ = word.removeprefix("--").partition("=")
        if field not in {"run.resume", *changes}:
            words.append(word)
        elif not equals:  # --section.field VALUE
            next(given, None)
    return shlex.join([*words, *(f"{field}={value}" for field, value in changes.items())])
