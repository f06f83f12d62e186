"""Prepare a dataset: read text, train or load its tokenizer, write token shards.

usage: python data/prepare.py configs/data/NAME.yaml [field=value ...]
       python data/prepare.py FILE_OR_FOLDER ... [tokenizer=bpe:8192] [out=data/mine] [...]
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from tqdm import tqdm

from data.recipe import Recipe, find_recipe, read_recipe
from data.sources import BadText, Document, list_documents
from data.split import Piece, SplitPlan
from gpt.cli import help_text, split_arguments, validate
from gpt.errors import UserError, run_command
from gpt.files import flush_to_disk
from gpt.shards import (
    Dataset,
    Manifest,
    SplitWriter,
    TokenizerInfo,
    is_dataset,
    read_manifest,
    write_manifest,
)
from gpt.telemetry import progress_bar
from gpt.tokenizer import Tokenizer, build_tokenizer, needs_corpus

BATCH_CHARACTERS = 8 << 20  # what is encoded at once


def main(argv: list[str]) -> None:
    """The command line."""
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text(Recipe, __doc__ or "", flags=False))
        return
    prepare(recipe_from(argv))


def recipe_from(argv: list[str]) -> Recipe:
    """A recipe file with overrides, or sources named directly."""
    words, overrides = split_arguments(argv)
    values: dict[str, Any]
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        values = read_recipe(Path(words[0]), overrides).model_dump(exclude_unset=True)
    else:
        recipes = [word for word in words if word.endswith((".yaml", ".yml"))]
        if recipes:
            raise UserError(f"give one recipe or a list of sources, not both: {' '.join(words)}")
        values = {"sources": words} if words else {}
        if words:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(words[0].rstrip("/")).stem)
            values["name"] = name.lstrip(".-_") or "text"
    return validate(Recipe, values | overrides, dict.fromkeys(overrides, "command line"))


def open_or_prepare(dataset: str) -> Dataset:
    """The dataset that a run names; it is prepared first if only its recipe is there."""
    recipe = find_recipe(dataset)
    if recipe is None:
        return Dataset(Path(dataset))
    if is_dataset(Path(recipe.out)):
        _refuse_another_dataset(recipe, Path(recipe.out))
        return Dataset(Path(recipe.out))
    print(f"{recipe.out} is not there yet: preparing it as the recipe {recipe.name} says")
    return prepare(recipe)


def prepare(recipe: Recipe) -> Dataset:
    """Make the dataset, or keep it if it is there already.

    Everything is written into a folder beside `out` that takes its name when it is complete, so an
    interrupted preparation never leaves a dataset. Raises UserError, and leaves nothing, if the
    sources have no usable text or `out` holds something else.
    """
    out = Path(recipe.out)
    if is_dataset(out):
        _refuse_another_dataset(recipe, out)
        print(f"{out} is already prepared")
        return Dataset(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a dataset; choose another out=FOLDER")
    documents = list_documents(recipe.sources)
    if not any(document.size for document in documents):
        raise UserError(f"the sources ({', '.join(recipe.sources)}) are empty: there is no text to "
                        "prepare")
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    made = [folder for folder in temporary.parents if not folder.exists()]  # innermost first
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(recipe, documents, temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        flush_to_disk(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # the dataset is in it
            for folder in made:
                folder.rmdir()
    return _announce(Dataset(out))


def _refuse_another_dataset(recipe: Recipe, out: Path) -> None:
    """Refuse another recipe's dataset; say so if the same recipe's files have changed since."""
    manifest = read_manifest(out)
    different = [f"{key} ({manifest.recipe.get(key)!r} there, {value!r} asked)"
                 for key, value in recipe.identity.items() if manifest.recipe.get(key) != value]
    if different:
        raise UserError(f"{out} holds a dataset made from another recipe: {', '.join(different)}; "
                        "choose another out=FOLDER, or remove that folder first")
    with contextlib.suppress(UserError):  # a dataset stands without its sources
        if manifest.corpus and manifest.corpus != _corpus_hash(list_documents(recipe.sources)):
            print(f"note: files were added, removed or changed since {out} was prepared; to "
                  "prepare them again, remove that folder or choose another out=FOLDER",
                  file=sys.stderr)


def _corpus_hash(documents: list[Document]) -> str:
    names = "\n".join(f"{document.name}\t{document.size}" for document in documents)
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()


def _write(recipe: Recipe, documents: list[Document], folder: Path) -> None:
    bad_text = BadText(recipe.on_bad_text)
    plan = SplitPlan(recipe, documents)
    tokenizer = _make_tokenizer(recipe, plan, bad_text)
    tokenizer.save(folder / "tokenizer")
    writers = {split: SplitWriter(folder, split, tokenizer.vocab_size)
               for split in ("train", "val")}
    with progress_bar("encoding", plan.bytes, "B") as bar:
        for batch in _batches(plan.pieces(bad_text)):
            encoded = tokenizer.encode_batch([piece.text for piece in batch], recipe.workers)
            for piece, ids in zip(batch, encoded, strict=True):
                if piece.starts:
                    writers[piece.split].start_document()
                size = len(piece.text.encode())
                writers[piece.split].add(ids + [tokenizer.end_of_text] * piece.ends, size)
                bar.update(size)
    splits = {split: writer.close() for split, writer in writers.items()}
    for split, info in splits.items():
        if info.bytes == 0:
            raise UserError(f"the {split} split is empty: {plan.bytes} bytes in {len(documents)} "
                            f"documents are too little for val_fraction={recipe.val_fraction}; "
                            "give more text, or split=tail")
    write_manifest(folder, Manifest(
        format_version=1, name=recipe.name, dtype=writers["train"].dtype.name, splits=splits,
        tokenizer=TokenizerInfo(spec=recipe.tokenizer, sha256=tokenizer.fingerprint,
                                vocab_size=tokenizer.vocab_size),
        recipe=recipe.identity, sources=recipe.sources, corpus=_corpus_hash(documents),
        bad_text=dict(bad_text.documents)))


def _make_tokenizer(recipe: Recipe, plan: SplitPlan, bad_text: BadText) -> Tokenizer:
    if not needs_corpus(recipe.tokenizer):
        return build_tokenizer(recipe.tokenizer)
    with progress_bar(f"tokenizer {recipe.tokenizer}", plan.bytes, "B") as bar:
        return build_tokenizer(recipe.tokenizer, _training_texts(plan, bad_text, bar))


def _training_texts(plan: SplitPlan, bad_text: BadText, bar: tqdm[Any]) -> Iterator[str]:
    """What a tokenizer is trained on: the training split alone."""
    for piece in plan.pieces(bad_text):
        bar.update(len(piece.text.encode()))
        if piece.split == "train":
            yield piece.text


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups large enough to keep every thread busy, small enough for any memory."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _announce(dataset: Dataset) -> Dataset:
    manifest = dataset.manifest
    print(f"{dataset.folder}: tokenizer {manifest.tokenizer.spec}, "
          f"vocabulary {manifest.tokenizer.vocab_size:,}")
    for split, info in manifest.splits.items():
        print(f"  {split:5} {info.documents:>9,} documents {info.tokens:>14,} tokens "
              f"{info.bytes:>14,} bytes ({info.bytes / info.tokens:.2f} per token)")
    for what, count in manifest.bad_text.items():
        print(f"  {count} documents with invalid UTF-8 were {what}")
    return dataset


if __name__ == "__main__":
    run_command(main)
