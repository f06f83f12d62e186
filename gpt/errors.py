"""How failures reach the user: one line saying what, where and what to do, and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from gpt.launcher import BadLauncher, is_alone, quieten, words_of_failure
from gpt.streams import Output, guarded_streams

EXIT_FAILED = 1  # something broke
EXIT_USAGE = 2  # wrong usage, configuration or data: the line says what to change
EXIT_INTERRUPTED = 130  # by Ctrl-C, with nothing to save: as shells say it
EXIT_STOPPED = 75  # stopped by a signal after saving: run the same command to continue
LONGEST_LINE = 4_000  # characters of a refusal, whatever it quotes
STOPS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # signals that ask for it


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what, where, what to do."""

    def __init__(self, line: str) -> None:
        super().__init__(_without_its_middle(line))


class WorkFailed(RuntimeError):
    """Something broke that no change of the command mends. Its text is one line."""


def _without_its_middle(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:LONGEST_LINE * 3 // 4]} […] {line[-LONGEST_LINE // 5:]}"


class TrainingFailed(WorkFailed):
    """Training cannot go on (a loss that is not finite, say)."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, as everywhere, instead of a usage block."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(EXIT_USAGE, f"error: {message}; --help lists all options\n")


class Stopped(Exception):
    """A signal asked the work to stop, and its state is saved."""


def run_command(command: Callable[[list[str]], None], goes_on: bool = False) -> None:
    """Run a script's `main` with the process's arguments; its errors become lines and exit codes.

    goes_on: the same command continues what was stopped, whenever that was.
    """
    trace = ""
    quieten()
    if goes_on:
        leave_when_asked()
    with guarded_streams() as output:
        try:
            code, line = _outcome(command, output)
        except Exception as error:  # a mistake of ours, which Python shows; of several ranks, one
            if is_alone():
                raise
            code, line = EXIT_FAILED, f"failed: {type(error).__name__}: {error}"
            trace = traceback.format_exc()
        output.flush()
        if code == 0 and output.error is not None and not isinstance(output.error, BrokenPipeError):
            code, line = EXIT_FAILED, (f"failed: standard output: {output.error.strerror}: what "
                                       "was to be shown is lost")
        if line and (line := words_of_failure(" ".join(line.split()))):
            print(trace + line, file=output.aloud)
    if goes_on:  # Python, while it ends, would let a signal kill it, as if something had failed
        _on_stops(signal.SIG_IGN)
    if code and not is_alone():
        _leave_at_once(code)
    if code:
        sys.exit(code)


def leave_when_asked() -> None:
    """Let signals that ask for a stop end the process at once, as stopped: while there is nothing
    to save, or while what there is is safe on disk. (gpt/machine/signals.py listens meanwhile.)"""
    _on_stops(_leave_asked)


def _on_stops(do: Callable[[int, object], NoReturn] | signal.Handlers) -> None:
    for name in STOPS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, do)


def _leave_asked(number: int, frame: object) -> NoReturn:
    line = words_of_failure(f"stopped by {signal.Signals(number).name}; the same command goes on")
    with contextlib.suppress(Exception):  # in the middle of a write, say
        sys.stdout.flush()
    os.write(2, f"{line}\n".encode() if line else b"")
    os._exit(EXIT_STOPPED)


def _leave_at_once(code: int) -> NoReturn:
    """End without what Python still does: threads that wait for a lost process never let it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _outcome(command: Callable[[list[str]], None], output: Output) -> tuple[int, str | None]:
    """(exit code, last line)"""
    try:
        command(sys.argv[1:])
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0, None
        return EXIT_FAILED, left.code
    except (UserError, BadLauncher) as error:
        return EXIT_USAGE, f"error: {error}"
    except WorkFailed as error:
        return EXIT_FAILED, f"failed: {error}"
    except Stopped as stopped:
        return EXIT_STOPPED, str(stopped)
    except BaseException as error:
        if _is_interrupt(error):
            return EXIT_INTERRUPTED, "interrupted"
        if error is output.error and isinstance(error, BrokenPipeError):
            return 0, None  # the reader of our output left, as in `sample.py … | head`
        if not isinstance(error, OSError):
            raise
        return EXIT_FAILED, (f"failed: {error.filename or 'input or output'}: "
                             f"{error.strerror or error}")
    return 0, None


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is a Ctrl-C, or what a library made of one while it was imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
