"""The documented functions of the quick start's corpus: what its example tasks are made of."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.recipe import RECIPES, read_recipe
from data.sources.files import list_files
from gpt.configuration import split_arguments
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.machine.progress import progress_bar
from gpt.shards import held_out_names

Function = ast.FunctionDef | ast.AsyncFunctionDef
Record = dict[str, Any]


def make_task(argv: list[str], usage: str, folder: str,
              record_of: Callable[[Function], Record]) -> None:
    """A task's command line: `out=FOLDER recipe=FILE`, both with a default."""
    if "--help" in argv or "-h" in argv:
        print(usage)
        return
    words, settings = split_arguments(argv)
    unknown = [*words, *(settings.keys() - {"out", "recipe"})]
    if unknown:
        raise UserError(f"{unknown[0]} is no setting of this command; it takes out= and recipe=")
    for name, value in settings.items():
        if not isinstance(value, str):
            raise UserError(f"{name} must be a path, not {value!r}")
    write_task(Path(settings.get("out", folder)),
               Path(settings.get("recipe", RECIPES / "stdlib.yaml")), record_of)


def write_task(out: Path, recipe_file: Path, record_of: Callable[[Function], Record]) -> None:
    """Write out/train.jsonl and out/val.jsonl, unless they are there.

    Modules that the recipe holds out of pretraining are the validation set here too, so no model
    has seen them. What a record is asked comes once, and not in both sets.
    """
    paths = {split: out / f"{split}.jsonl" for split in ("train", "val")}
    if all(path.is_file() for path in paths.values()):
        print(f"{out} is already there")
        return
    records: dict[str, dict[str, Record]] = {"train": {}, "val": {}}
    for split, source in modules(recipe_file, out):
        for function in functions_in(source):
            record = record_of(function)
            records[split][next(iter(record.values()))] = record
    seen = records["train"]
    records["val"] = {asked: record for asked, record in records["val"].items()
                      if asked not in seen}
    if not seen:
        raise UserError(f"the sources of {recipe_file} hold no functions with docstrings")
    out.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n"
                 for record in records[split].values()]
        write_atomically(path, "".join(lines))
        print(f"{path}: {len(lines):,} records")


def modules(recipe_file: Path, out: Path) -> Iterator[tuple[str, bytes]]:
    """(train or val, source) of every module of a recipe."""
    recipe = read_recipe(recipe_file)
    files = [file for file in list_files(recipe.sources, out) if file.path.endswith(".py")]
    held_out = held_out_names([file.name for file in files], recipe.val_fraction, recipe.seed)
    with progress_bar("functions", len(files), "file") as bar:
        for file in files:
            yield "val" if file.name in held_out else "train", Path(file.path).read_bytes()
            bar.update()


def functions_in(source: bytes) -> Iterator[Function]:
    """The functions of a module that have a docstring; none of one that cannot be parsed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    for node in ast.walk(tree):
        if isinstance(node, Function) and first_line(node):
            yield node


def signature(function: Function) -> str:
    """`def name(arguments) -> result:`"""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}:"


def first_line(function: Function) -> str:
    """Of its docstring; empty if there is none."""
    return (ast.get_docstring(function) or "").strip().partition("\n")[0]
