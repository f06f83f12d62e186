"""python -m gpt runs: which runs there are, and how far they have come."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt.terminal.runs import runs_in, table_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FOLDER."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", type=Path,
                        help="where runs lie (%(default)s), or one run")


def run(options: argparse.Namespace) -> None:
    """Print a line for each, newest first."""
    print(table_of(runs_in(options.folder)))
