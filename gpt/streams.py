"""Standard streams that are absent, closed, broken or full: they never decide what work does.

A terminal can be closed, a reader can leave (`2>&1 | head -1`), a disk can be full, a service may
have no streams at all. What cannot be shown is then lost, and the work goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from gpt.launcher import is_silent


class Output:
    """A stream that is written to as long as that works.

    error: why it is written to no more. matters: whether what it is written is said here alone.
    aloud: where failures are told, also by a process that is silent.
    """

    def __init__(self, stream: TextIO, aloud: TextIO | None = None):
        self._stream, self.aloud = stream, aloud
        self.error: OSError | None = None
        self.matters = True

    def write(self, text: str) -> int:
        """As a text file's."""
        with self._giving_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a text file's."""
        with self._giving_up():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "standard output"
            if self.matters:
                self.error = error
            with contextlib.suppress(OSError):  # what is still in its buffer goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def guarded_streams() -> Iterator[Output]:
    """Make the standard streams safe to use; gives standard output.

    Of several processes that work together one alone is heard, but for failures.
    """
    _open_absent_ones()
    before = sys.stdout, sys.stderr
    for stream in before:  # a terminal that lacks a character is no failure
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    errors: Any = Output(sys.stderr)
    output = Output(sys.stdout, errors)
    with contextlib.ExitStack() as stack:
        if is_silent():
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            output = Output(nowhere, errors)
            errors = Output(nowhere)
        sys.stdout, sys.stderr = output, errors
        try:
            yield output
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = before


def _open_absent_ones() -> None:
    """So that no file of ours takes the number of a stream, and what is written to it: what is
    opened takes the lowest number that is free."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


@contextlib.contextmanager
def kept_elsewhere() -> Iterator[None]:
    """What is said meanwhile stands in a file too: to lose it here is no failure."""
    output = sys.stdout
    if isinstance(output, Output):
        output.matters = False
    try:
        yield
    finally:
        if isinstance(output, Output):
            output.flush()
            output.matters = True


def raise_if_unread() -> None:
    """For work that is of no use once nobody reads it. Raises the OSError that ended output."""
    if isinstance(sys.stdout, Output) and sys.stdout.error is not None:
        raise sys.stdout.error
