"""Prepare a dataset: read text, train or load its tokenizer, write token shards.

usage: python data/prepare.py configs/data/NAME.yaml [field=value ...]
       python data/prepare.py FILE_OR_FOLDER ... [tokenizer=bpe:8192] [out=data/mine] [...]

Running the same command again continues what was interrupted. With RANK and WORLD_SIZE in the
environment each process prepares its share of the files, and the last one joins the parts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from gpt.errors import UserError, run_command

if TYPE_CHECKING:
    from data.recipe import Recipe


def main(argv: list[str]) -> None:
    """Parse, prepare."""
    # What follows takes a while to import; a Ctrl-C meanwhile is to be one line.
    from data.preparation import prepare
    from data.recipe import Recipe
    from gpt.configuration import help_text
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text(Recipe, __doc__ or "", flags=False))
        return
    prepare(recipe_from(argv))


def recipe_from(argv: list[str]) -> Recipe:
    """A recipe file with overrides, or sources named directly."""
    from data.recipe import build_recipe, read_recipe
    from gpt.configuration import split_arguments
    words, overrides = split_arguments(argv)
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        return read_recipe(Path(words[0]), overrides)
    if any(word.endswith((".yaml", ".yml")) for word in words):
        raise UserError(f"give one recipe or a list of sources, not both: {' '.join(words)}")
    values: dict[str, Any] = {}
    if words:
        stem = Path(words[0].rstrip("/")).stem if words[0] != "-" else "stdin"
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip(".-_")
        values = {"sources": list(words), "name": name or "text"}
    return build_recipe(values, overrides)


if __name__ == "__main__":
    run_command(main, goes_on=True)
