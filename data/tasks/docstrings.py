"""Make the quick start's task: from a function's signature, write its docstring's first line.

usage: python data/tasks/docstrings.py [out=data/docstrings] [recipe=configs/data/stdlib.yaml]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from data.tasks.library_functions import Function, Record, first_line, make_task, signature
from gpt.errors import run_command


def pair(function: Function) -> Record:
    """The signature with an opened docstring, and how that goes on."""
    return {"prompt": f'{signature(function)}\n    """', "completion": first_line(function)}


if __name__ == "__main__":
    run_command(lambda argv: make_task(argv, __doc__, "data/docstrings", pair))
