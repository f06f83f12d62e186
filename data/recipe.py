"""A dataset as a recipe: what configs/data/*.yaml says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gpt.cli import validate
from gpt.config import Section
from gpt.errors import UserError
from gpt.strict_yaml import load_file

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "data"


class Recipe(Section):
    """How a dataset is made."""

    name: str = Field("text", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
                      description="the dataset's name; default: the recipe's file name")
    out: str = Field(default_factory=lambda data: f"data/{data['name']}",
                     description="folder to write; default data/NAME")
    sources: Annotated[list[str], Field(min_length=1)] = Field(
        description="files, folders, globs, or python-library: the interpreter's own modules")
    tokenizer: str = Field("bpe:4096", description="byte, char, bpe:N (trained on the training "
                                                   "split), gpt2, cl100k_base, … or PATH.tiktoken")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share held out for validation")
    split: Literal["auto", "documents", "tail"] = Field(
        "auto", description="documents: by a stable hash of each name; tail: the last part of the "
                            "text; auto: tail for a single document, else documents")
    seed: int = Field(0, ge=0, lt=2**63, description="decides which documents are held out")
    workers: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=lambda data: os.cpu_count() or 1, description="threads that encode")
    on_bad_text: Literal["error", "replace", "skip"] = Field(
        "error", description="for documents that are not UTF-8: stop, write U+FFFD, leave out")

    @model_validator(mode="after")
    def _out_is_a_folder_of_its_own(self) -> Recipe:
        if not self.out.strip() or Path(self.out).resolve() == Path.cwd():
            raise ValueError("out must name a folder of its own")
        return self

    @property
    def identity(self) -> dict[str, object]:
        """What decides the tokens: a folder prepared with the same identity is up to date."""
        return self.model_dump(exclude={"workers", "out", "name"})


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read configs/data/NAME.yaml. Raises UserError naming file, line and field."""
    document = load_file(path)
    values = document.values
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is made of fields such as 'sources:' and 'tokenizer:'")
    values.setdefault("name", path.stem)
    origins = {k: f"{path}, line {v}" for k, v in document.lines.items()}
    overrides = overrides or {}
    return validate(Recipe, values | overrides, origins | dict.fromkeys(overrides, "command line"))


def find_recipe(dataset: str) -> Recipe | None:
    """The recipe that a run's data.dataset names: a YAML file, or the folder that one fills."""
    path = Path(dataset)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_recipe(path)
    candidate = RECIPES / f"{path.name}.yaml"
    if not path.exists() and candidate.is_file():
        recipe = read_recipe(candidate)
        if Path(recipe.out).resolve() == path.resolve():
            return recipe
    return None
