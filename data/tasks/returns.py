"""Make a classification task: from signature and docstring, what does a function give back?

usage: python data/tasks/returns.py [out=data/returns] [recipe=configs/data/stdlib.yaml]

The label is read off the function's own code: a value, nothing, or a generator of values.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from data.tasks.library_functions import Function, Record, first_line, make_task, signature
from gpt.errors import run_command


def labelled(function: Function) -> Record:
    """What is known of a function without its code, and what the code says."""
    text = f'{signature(function)}\n    """{first_line(function)}"""\n    # returns '
    return {"text": text, "label": label(function)}


def label(function: Function) -> str:
    """value, nothing or generator."""
    nodes = list(own_nodes(function))
    if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes):
        return "generator"
    returned = [node.value for node in nodes if isinstance(node, ast.Return)]
    gives = any(value is not None and not (isinstance(value, ast.Constant) and value.value is None)
                for value in returned)
    return "value" if gives else "nothing"


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """All of a function's code but that of functions and classes inside it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield node
            yield from own_nodes(node)


if __name__ == "__main__":
    run_command(lambda argv: make_task(argv, __doc__, "data/returns", labelled))
