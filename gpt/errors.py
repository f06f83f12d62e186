"""How failures reach the user: one line saying what, where and what to do, and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_FAILED = 1  # something broke
EXIT_USAGE = 2  # wrong usage, configuration or data: the line says what to change
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
    """Run a script's `main` with the process's arguments and turn its errors into exit codes."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character is no failure
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        command(sys.argv[1:])
    except UserError as error:
        _leave(EXIT_USAGE, f"error: {error}")
    except WorkFailed as error:
        _leave(EXIT_FAILED, f"failed: {error}")
    except Stopped as stopped:
        _leave(EXIT_STOPPED, str(stopped))
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except BrokenPipeError:  # the reader of our output left, as in `sample.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _leave(EXIT_FAILED, f"failed: {error.filename or 'input or output'}: "
                            f"{error.strerror or error}")


def _leave(code: int, line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)
