"""python -m gpt curves: the loss of runs, drawn in the terminal."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from gpt.runs.history import read_histories
from gpt.terminal.runs import drawn_curves

ROWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN …"""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders")


def run(options: argparse.Namespace) -> None:
    """Draw them over each other, as wide as the terminal is."""
    print(drawn_curves(read_histories(options.runs),
                       shutil.get_terminal_size().columns, ROWS, sys.stdout.isatty(),
                       sys.stdout.encoding))
