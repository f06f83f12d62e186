"""Make the quick start's task: from a function's signature, write its docstring's first line.

usage: python data/docstrings.py [out=data/docstrings] [recipe=configs/data/stdlib.yaml]

The pairs come from the Python library's own modules. Modules that the recipe holds out of
pretraining are the validation set here too, so no model has seen them.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from data.files import list_files
from data.recipe import RECIPES, read_recipe
from gpt.cli import split_arguments
from gpt.errors import UserError, run_command
from gpt.files import write_atomically
from gpt.holdout import held_out_names
from gpt.telemetry import progress_bar


def main(argv: list[str]) -> None:
    """The command line."""
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return
    words, settings = split_arguments(argv)
    unknown = [*words, *(settings.keys() - {"out", "recipe"})]
    if unknown:
        raise UserError(f"{unknown[0]} is no setting of this command; it takes out= and recipe=")
    for name, value in settings.items():
        if not isinstance(value, str):
            raise UserError(f"{name} must be a path, not {value!r}")
    make_pairs(Path(settings.get("out", "data/docstrings")),
               Path(settings.get("recipe", RECIPES / "stdlib.yaml")))


def make_pairs(out: Path, recipe_file: Path) -> None:
    """Write out/train.jsonl and out/val.jsonl, unless they are there."""
    paths = {split: out / f"{split}.jsonl" for split in ("train", "val")}
    if all(path.is_file() for path in paths.values()):
        print(f"{out} is already there")
        return
    recipe = read_recipe(recipe_file)
    modules = [file for file in list_files(recipe.sources, out) if file.path.endswith(".py")]
    held_out = held_out_names([module.name for module in modules], recipe.val_fraction, recipe.seed)
    pairs: dict[str, dict[str, str]] = {"train": {}, "val": {}}
    with progress_bar("docstrings", len(modules), "file") as bar:
        for module in modules:
            split = "val" if module.name in held_out else "train"
            pairs[split].update(pairs_in(Path(module.path).read_bytes()))
            bar.update()
    seen = pairs["train"]
    pairs["val"] = {prompt: text for prompt, text in pairs["val"].items() if prompt not in seen}
    if not pairs["train"]:
        raise UserError(f"the sources of {recipe_file} hold no functions with docstrings")
    out.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        lines = [json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False) + "\n"
                 for prompt, text in pairs[split].items()]
        write_atomically(path, "".join(lines))
        print(f"{path}: {len(lines):,} pairs")


def pairs_in(source: bytes) -> Iterator[tuple[str, str]]:
    """(signature with an opened docstring, the docstring's first line) of every function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = (ast.get_docstring(node) or "").strip()
            if docstring:
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                signature = f"def {node.name}({ast.unparse(node.args)}){returns}:"
                yield f'{signature}\n    """', docstring.splitlines()[0]


if __name__ == "__main__":
    run_command(main)
