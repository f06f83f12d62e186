"""The last steps of a preparation: reports, the manifest, and a word to the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.documents.overlap import OVERLAP, report_overlap
from data.recipe import Recipe
from data.sharding.making import TOKENIZER, Shards
from data.sharding.parts import PART, merge
from gpt.errors import UserError
from gpt.files import flush_to_disk, read_json, sha256_of, write_atomically
from gpt.shards import Dataset, Manifest, TokenizerInfo, dtype_for, write_manifest

BAD_TEXT = "bad_text.jsonl"
_REPORTED = {"replaced", "skipped"}  # of a tally's counts: bad text; the others are cleaning


def finish(recipe: Recipe, shards: Shards, folder: Path, part: bool = False) -> None:
    """Write the reports and, last of all, the manifest."""
    counts = shards.tally.counts
    tokenizer = TokenizerInfo(spec=shards.tokenizer.spec, sha256=shards.tokenizer.fingerprint,
                              vocab_size=shards.tokenizer.vocab_size)
    manifest = Manifest(
        format_version=1, name=recipe.name, tokenizer=tokenizer,
        dtype=dtype_for(shards.tokenizer.vocab_size).name, splits=shards.splits,
        recipe=recipe.identity, sources=shards.sources, corpus=shards.corpus,
        bad_text={k: counts[k] for k in sorted(counts) if k in _REPORTED},
        cleaning={k: counts[k] for k in sorted(counts) if k not in _REPORTED})
    _write_incidents(folder, (json.dumps(incident._asdict(), ensure_ascii=False)
                              for incident in shards.tally.incidents))
    if part:
        write_manifest(folder, _with_hashes(manifest, folder), PART)
    else:
        _complete(recipe, manifest, folder)


def join_parts(recipe: Recipe, parts: Sequence[Path], folder: Path) -> None:
    """Make one dataset of all ranks' parts."""
    manifest = merge(parts, folder)
    if manifest.recipe != recipe.identity:
        raise UserError(f"{parts[0].parent} was made with another recipe; remove that folder, or "
                        "choose another out=FOLDER")
    _write_incidents(folder, (line.rstrip("\n") for part in parts if (part / BAD_TEXT).is_file()
                              for line in (part / BAD_TEXT).open(encoding="utf-8")))
    _complete(recipe, manifest, folder)


def _write_incidents(folder: Path, lines: Iterable[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    if text:
        write_atomically(folder / BAD_TEXT, text.encode("utf-8", "backslashreplace"))


def _complete(recipe: Recipe, manifest: Manifest, folder: Path) -> None:
    total = sum(split.bytes for split in manifest.splits.values())
    documents = sum(split.documents for split in manifest.splits.values())
    for split, info in manifest.splits.items():
        if info.bytes == 0:
            raise UserError(f"the {split} split is empty: {total} bytes in {documents} documents "
                            f"are too little for val_fraction={recipe.val_fraction}; give more "
                            "text, or split=tail")
    for source in manifest.sources:
        if source.weight is not None and source.train.tokens == 0:
            raise UserError(f"the source {source.path} gave no text to training, which is to draw "
                            f"{source.weight:g} parts from it; give it more text, or leave it out")
    if recipe.overlap_with is not None:
        report_overlap(recipe, manifest, folder)
    write_manifest(folder, _with_hashes(manifest, folder))


def _with_hashes(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with SHA-256 of all files that are not shards, which are on the disk then."""
    flush_to_disk(folder / TOKENIZER)
    paths = [*sorted((folder / TOKENIZER).iterdir()), folder / BAD_TEXT, folder / OVERLAP]
    files = {}
    for path in filter(Path.is_file, paths):
        flush_to_disk(path)
        files[path.relative_to(folder).as_posix()] = sha256_of(path)
    return manifest.model_copy(update={"files": files})


def announce(dataset: Dataset) -> Dataset:
    """Say what a dataset holds, and what was done to make it."""
    manifest, folder = dataset.manifest, dataset.folder
    print(f"{folder}: tokenizer {manifest.tokenizer.spec}, "
          f"vocabulary {manifest.tokenizer.vocab_size:,}")
    for split, info in manifest.splits.items():
        print(f"  {split:5} {info.documents:>9,} documents {info.tokens:>14,} tokens "
              f"{info.bytes:>14,} bytes ({info.bytes / info.tokens:.2f} per token)")
    if len(manifest.sources) > 1:
        for source in manifest.sources:
            weight = f", weight {source.weight:g}" if source.weight is not None else ""
            print(f"  {source.path}: {source.train.tokens + source.val.tokens:,} tokens{weight}")
    for what, count in manifest.bad_text.items():
        print(f"  {count:,} documents with bad text were {what}: {folder / BAD_TEXT} lists them")
    for what, count in manifest.cleaning.items():
        print(f"  {count:,} documents {what.replace('_', ' ')}")
    if (folder / OVERLAP).is_file():
        found = read_json(folder / OVERLAP)
        print(f"  {found['documents_with_overlap']:,} of {found['documents']:,} documents of "
              f"{found['evaluation']} share {found['n']}-grams with training: {folder / OVERLAP}")
    return dataset
