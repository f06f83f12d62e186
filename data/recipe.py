"""A dataset as a recipe: what configs/data/*.yaml says."""

from __future__ import annotations

import codecs
import difflib
import encodings.aliases
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from gpt.configuration import Section, refuse_another_commands, validate
from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "data"
Format = Literal["auto", "text", "jsonl", "json", "csv", "parquet", "datasets"]
_NO_CORPUS = {"idna", "punycode", "undefined", "charmap", "unicode-escape", "raw-unicode-escape",
              "utf-7", "mbcs", "oem"}  # codecs that are names, program text, or a system's own


def _known_encoding(given: str) -> str:
    """Python's own name of an encoding, so that all names of one mean the same recipe."""
    try:
        codec = codecs.lookup(given)
        if codec._is_text_encoding and codec.name not in _NO_CORPUS:
            return "utf-8" if codec.name == "utf-8-sig" else codec.name
    except (LookupError, ValueError):
        pass
    names = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}
    known = sorted(name.replace("_", "-") for name in names)
    near = difflib.get_close_matches(given.lower().replace("_", "-"), known, 3, 0.5)
    raise ValueError("there is no such encoding; " + (
        f"near are {', '.join(near)}" if near else "some are utf-8, latin-1, cp1252, utf-16"))


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class Source(Section):
    """One place that text comes from."""

    path: str = Field(min_length=1, description=(
        "a file, a folder, an archive, a glob, - for standard input, a URL, python-library, or "
        "with format=datasets the name of a Hugging Face dataset"))
    format: Format = Field("auto", description="auto: by the file name's ending")
    text_field: str = Field("text", min_length=1, description=(
        "of a record: the field that holds its text, or a template such as '{title}: {body}'"))
    encoding: Encoding = Field("utf-8", description=(
        "of text, jsonl, json and csv: utf-8, latin-1, cp1252, utf-16, gb18030, …"))
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="share of training relative to the other sources' weights")
    max_tokens: Annotated[int, Field(ge=2)] | None = Field(
        None, description="write at most this many tokens of it")
    url: str | None = Field(None, description="where to fetch `path` from if it is not there")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$",
                               description="what the file must hash to")
    subset: str | None = Field(None, description="configuration of a Hugging Face dataset")
    subset_split: str = Field("train", description="split of a Hugging Face dataset")
    revision: str | None = Field(None, description="commit or branch of a Hugging Face dataset")

    @model_validator(mode="after")
    def _fits_together(self) -> Source:
        elsewhere = self.format == "datasets" or self.path in ("-", "python-library")
        if self.url is not None and (elsewhere or "://" in self.path):
            raise ValueError("url goes with a path on this machine, where its file is kept")
        if self.sha256 is not None and (self.format == "datasets" or self.path == "python-library"
                                        or re.match(r"(?i)(?!https?:)\w+://", self.path)):
            raise ValueError("sha256 goes with a file on this machine or an http(s) address")
        if self.format != "datasets" and (self.subset or self.revision
                                          or self.subset_split != "train"):
            raise ValueError("subset, subset_split and revision go with format=datasets")
        if self.encoding != "utf-8" and self.format in ("parquet", "datasets"):
            raise ValueError("encoding goes with text, jsonl, json and csv, in the source that has "
                             f"it; {self.format} says itself what its text is in")
        return self

    @property
    def identity(self) -> Any:
        """What decides the text, as short as a recipe would say it: with a hash, not the place."""
        elsewhere = {"url"} if self.sha256 is None else {"url", "path"}
        given = self.model_dump(exclude_defaults=True, exclude=elsewhere)
        return given["path"] if given.keys() == {"path"} else given


_INHERITED = ("format", "text_field", "encoding")  # by sources that do not say theirs


class Recipe(Section):
    """How a dataset is made."""

    name: str = Field("text", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
                      description="the dataset's name; default: the recipe's file name")
    out: str = Field(default_factory=lambda data: f"data/{data['name']}",
                     description="folder to write; default data/NAME")
    format: Format = Field("auto", description="of sources that do not say theirs: auto (by the "
                                               "file name's ending) or one of the others")
    text_field: str = Field("text", min_length=1, description=(
        "of records in sources that do not say theirs: a field, or a template such as "
        "'{title}: {body}'"))
    encoding: Encoding = Field("utf-8", description=(
        "of sources that do not say theirs: utf-8, latin-1, cp1252, utf-16, gb18030, …"))
    sources: Annotated[list[Source], Field(min_length=1)] = Field(description=(
        "files, folders, archives, globs, - (standard input), URLs, python-library (the "
        "interpreter's own modules); or {path, format, text_field, encoding, weight, max_tokens, "
        "url, sha256, subset, subset_split, revision}"))
    tokenizer: str = Field("bpe:4096", description=(
        "byte, char, bpe:N (trained on the training split), gpt2, cl100k_base, …, PATH.tiktoken, "
        "or the tokenizer folder of a dataset or checkpoint"))
    tokenizer_max_bytes: Annotated[int, Field(ge=1)] = Field(
        300_000_000, description="text that bpe:N is trained on at most, spread over the corpus")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share held out for validation")
    split: Literal["auto", "documents", "tail"] = Field("auto", description=(
        "documents: by a stable hash of a file's name or a record's text; tail: the last part of "
        "the text; auto: tail for a single document, else documents"))
    seed: int = Field(0, ge=0, lt=2**63, description="decides which documents are held out")
    workers: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=lambda data: os.cpu_count() or 1, description="processes that encode")
    on_bad_text: Literal["error", "replace", "skip"] = Field("error", description=(
        "for text that is not in its encoding, files that are no text, records that cannot be "
        "read, files that break off: stop, write U+FFFD (and leave out what cannot be mended), or "
        "leave out"))
    normalize: Literal["none", "NFC", "NFKC"] = Field(
        "none", description="Unicode normalisation form")
    min_characters: Annotated[int, Field(ge=0)] = Field(
        0, description="leave out shorter documents")
    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="leave out longer documents")
    drop_duplicates: bool = Field(
        False, description="leave out documents whose text stood in an earlier one, to the letter")
    overlap_with: str | None = Field(None, description=(
        "report 13-grams of words that training shares with: validation, or a file of your own"))

    @field_validator("sources", mode="before")
    @classmethod
    def _paths_are_sources(cls, value: Any, info: ValidationInfo) -> Any:
        """A bare path stands for a source; what a source does not say comes from the recipe."""
        if not isinstance(value, list):
            return value
        common = {key: info.data[key] for key in _INHERITED if key in info.data}
        given = [item.model_dump(exclude_unset=True) if isinstance(item, Source) else item
                 for item in value]
        given = [{"path": item} if isinstance(item, str) else item for item in given]
        return [common | item if isinstance(item, dict) else item for item in given]

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if not self.out.strip() or Path(self.out).resolve() == Path.cwd():
            raise ValueError("out must name a folder of its own")
        weights = [source.weight is not None for source in self.sources]
        if any(weights) and not all(weights):
            raise ValueError("give every source a weight, or none")
        if [source.path for source in self.sources].count("-") > 1:
            raise ValueError("standard input can be read once: give - as one source")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError("max_characters is below min_characters")
        return self

    @property
    def is_mixture(self) -> bool:
        """Whether training draws from the sources by weight."""
        return self.sources[0].weight is not None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens: a folder prepared with the same identity is up to date."""
        fields = self.model_dump(exclude={"workers", "out", "name", "sources", *_INHERITED})
        return fields | {"sources": [source.identity for source in self.sources]}


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read configs/data/NAME.yaml. Raises UserError naming file, line and field."""
    document = load_file(path)
    values = document.values
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is made of fields such as 'sources:' and 'tokenizer:'")
    values.setdefault("name", path.stem)
    origins = {k: f"{path}, line {v}" for k, v in document.lines.items()}
    origins.setdefault("name", f"the name of {path}")
    refuse_another_commands(Recipe, values, path)
    return build_recipe(values, overrides or {}, origins)


def build_recipe(values: dict[str, Any], overrides: dict[str, Any],
                 origins: dict[str, str] | None = None) -> Recipe:
    """A recipe from its fields and what the command line sets: field=value, sources.0.path=FILE."""
    for name, value in overrides.items():
        if match := _SOURCE_FIELD.fullmatch(name):
            _set_in_source(values, int(match[1]), match[2], value)
        else:
            values[name] = value
    return validate(Recipe, values, (origins or {}) | dict.fromkeys(overrides, "command line"))


_SOURCE_FIELD = re.compile(r"sources\.(\d+)\.(\w+)")


def _set_in_source(values: dict[str, Any], number: int, name: str, value: Any) -> None:
    sources = values.get("sources")
    if not isinstance(sources, list) or number >= len(sources):
        raise UserError(f"sources.{number}.{name}: there is no source {number}; they count from 0")
    if not isinstance(sources[number], dict):
        sources[number] = {"path": sources[number]}
    sources[number][name] = value


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
