"""How failures reach the user: one line saying what, where and what to do, and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from gpt.streams import guarded_streams

EXIT_FAILED = 1  # something broke
EXIT_USAGE = 2  # wrong usage, configuration or data: the line says what to change
EXIT_INTERRUPTED = 130  # by Ctrl-C, with nothing to save: as shells say it
EXIT_STOPPED = 75  # stopped by a signal after saving: run the same command to continue


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what, where, what to do."""


class WorkFailed(RuntimeError):
    """Something broke that no change of the command mends. Its text is one line."""


class TrainingFailed(WorkFailed):
    """Training cannot go on (a loss that is not finite, say)."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, as everywhere, instead of a usage block."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(EXIT_USAGE, f"error: {message}; --help lists all options\n")


class Stopped(Exception):
    """A signal asked the work to stop, and its state is saved."""


def run_command(command: Callable[[list[str]], None]) -> None:
    """Run a script's `main` with the process's arguments; its errors become lines and exit codes.
    """
    with guarded_streams() as output, _interrupts() as interrupted:
        code, line = _outcome(command, interrupted)
        output.flush()
        if code == 0 and output.error is not None and not isinstance(output.error, BrokenPipeError):
            code, line = EXIT_FAILED, (f"failed: standard output: {output.error.strerror}: what "
                                       "was to be shown is lost")
        if line:
            print(" ".join(line.split()), file=sys.stderr)
    if code:
        sys.exit(code)


def _outcome(command: Callable[[list[str]], None], interrupted: threading.Event
             ) -> tuple[int, str | None]:
    """(exit code, last line)"""
    try:
        command(sys.argv[1:])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (
                interrupted.is_set() and not isinstance(error, Stopped | SystemExit)):
            return EXIT_INTERRUPTED, "interrupted"  # or whatever an import made of it
        if isinstance(error, SystemExit):
            return (error.code, None) if isinstance(error.code, int) else (
                int(error.code is not None), error.code)
        if isinstance(error, UserError):
            return EXIT_USAGE, f"error: {error}"
        if isinstance(error, WorkFailed):
            return EXIT_FAILED, f"failed: {error}"
        if isinstance(error, Stopped):
            return EXIT_STOPPED, str(error)
        if isinstance(error, BrokenPipeError):  # nobody reads any more, as in `sample.py … | head`
            return 0, None
        if isinstance(error, OSError):
            return EXIT_FAILED, (f"failed: {error.filename or 'input or output'}: "
                                 f"{error.strerror or error}")
        raise
    return 0, None


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by Ctrl-C, which is a KeyboardInterrupt as ever; libraries turn some into other errors,
    above all while they are being imported."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
        threading.current_thread() is threading.main_thread())
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
