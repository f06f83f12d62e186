"""From files to shards: where to continue, which tokenizer, and then the writing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.documents.corpus import Corpus, SeenTexts
from data.documents.split import SplitPlan
from data.recipe import Recipe
from data.sharding.journal import JOURNAL, Journal
from data.sharding.parts import Share
from data.sharding.writing import ShardWriting
from data.sources.bad_text import BadText, Tally
from data.sources.files import FETCHED, File
from data.sources.text import safe_cut
from gpt.errors import Stopped, WorkFailed
from gpt.files import LOCK, flush_to_disk, sha256_of
from gpt.machine.progress import progress_bar
from gpt.machine.signals import Stop, listening, resume_command
from gpt.shards import SourceInfo, Split, SplitInfo
from gpt.tokenizer import Tokenizer, build_tokenizer, needs_corpus

TOKENIZER = "tokenizer"
TOKENIZER_FILES = ("encoding.json", "ranks.tiktoken", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "generation_config.json", "config.json", "vocab.json",
                   "merges.txt")  # of a tokenizer's folder
SEEN = "seen.sqlite"
TRAINING_CHARACTERS = 1 << 16
WHOLE_BYTES = 200  # measured: 57 to 170 for Gemma, Llama 2, DeepSeek and SmolLM2


@dataclass(frozen=True)
class Shards:
    """What was written, and what happened on the way."""

    tokenizer: Tokenizer
    splits: dict[Split, SplitInfo]
    sources: list[SourceInfo]
    tally: Tally
    corpus: str  # SHA-256 of the files' names and sizes


def make_shards(recipe: Recipe, files: Sequence[File], share: Share, folder: Path) -> Shards:
    """Write this share's shards into a folder, from where an earlier attempt left off.

    Raises Stopped after a signal, with everything kept that is done.
    """
    key = _key(recipe, files, share, folder)
    journal = Journal.load(folder, key)
    if journal is None:
        if (folder / JOURNAL).exists():
            print(f"{folder} holds the beginning of another preparation; starting again",
                  file=sys.stderr)
        clear(folder)
        journal = Journal(key=key)
        journal.save(folder)
    if not recipe.drop_duplicates:
        return _make(Corpus(recipe, files), share, folder, journal, None)
    try:
        with contextlib.closing(SeenTexts(folder / SEEN)) as seen:
            return _make(Corpus(recipe, files, seen), share, folder, journal, seen)
    except sqlite3.Error as error:
        raise WorkFailed(f"{folder / SEEN}: {error}; make room, or remove {folder} to start over, "
                         "and run the same command again") from error


def _make(corpus: Corpus, share: Share, folder: Path, journal: Journal,
          seen: SeenTexts | None) -> Shards:
    plan = SplitPlan(corpus)
    with listening(Stop()) as stop:
        tokenizer = plan.tokenizer = _tokenizer(corpus, plan, folder, stop)
        if not tokenizer.encodes_in_pieces:
            print(f"note: tokenizer {tokenizer.spec} may join what stands on two sides of a blank, "
                  "so that every document is in memory as a whole while it is encoded, which takes "
                  f"about {WHOLE_BYTES} bytes for each byte of it", file=sys.stderr)
        if seen is not None:  # for a tokenizer, files are not read in order and to their end
            seen.forget()
        writing = ShardWriting(corpus, plan, tokenizer, folder, journal, seen)
        if writing.stored:
            print(f"continuing after {writing.stored:,} bytes of the files", file=sys.stderr)
        mine = share.files(corpus.files)
        with progress_bar("encoding", _size(corpus, mine), "B") as bar:
            splits = writing.run(mine, bar, stop)
    return Shards(tokenizer, splits, writing.sources, writing.tally, corpus_hash(corpus.files))


def _size(corpus: Corpus, files: Sequence[int]) -> int | None:
    return corpus.stored_bytes and sum(corpus.files[number].size or 0 for number in files)


def corpus_hash(files: Sequence[File]) -> str:
    """SHA-256 of the files' names and sizes."""
    names = "\n".join(f"{file.name}\t{file.size}" for file in files)
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()


def _key(recipe: Recipe, files: Sequence[File], share: Share, folder: Path) -> str:
    """What an unfinished preparation rests on: recipe, share, and files that nobody touched."""
    touched = []
    for file in files:
        path = Path(file.path)
        if path.is_relative_to(folder):  # fetched anew, perhaps, but the same
            touched.append(sha256_of(path))
        elif path.is_file():
            touched.append(str(path.stat().st_mtime_ns))
    own = Path(recipe.tokenizer)  # perhaps a rank file, or a tokenizer's folder
    tokenizer = [sha256_of(path) for path in (own, *(own / name for name in TOKENIZER_FILES))
                 if path.is_file()]
    said = [recipe.identity, corpus_hash(files), touched, tokenizer, share.rank, share.world_size]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def clear(folder: Path) -> None:
    """Remove what another attempt left, but not what was fetched."""
    for path in folder.iterdir():
        if path.name not in (LOCK, FETCHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _tokenizer(corpus: Corpus, plan: SplitPlan, folder: Path, stop: Stop) -> Tokenizer:
    """The recipe's tokenizer, which an earlier attempt may have made."""
    recipe, kept = corpus.recipe, folder / TOKENIZER
    if kept.is_dir():
        return Tokenizer.load(kept)
    if needs_corpus(recipe.tokenizer):
        tokenizer = build_tokenizer(recipe.tokenizer, _TrainingTexts(corpus, plan, stop))
    else:
        tokenizer = build_tokenizer(recipe.tokenizer)
    unfinished = folder / f"{TOKENIZER}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save(unfinished)
    for path in (*unfinished.iterdir(), unfinished):
        flush_to_disk(path)
    unfinished.rename(kept)
    flush_to_disk(folder)
    return tokenizer


@dataclass(frozen=True)
class _TrainingTexts:
    """What a tokenizer is trained on: the training split alone, and of a large one a part.

    That part is the beginning of every file, in proportion to its size. A tokenizer may read it
    again.
    """

    corpus: Corpus
    plan: SplitPlan
    stop: Stop

    def __iter__(self) -> Iterator[str]:
        recipe, total = self.corpus.recipe, self.corpus.stored_bytes
        most = recipe.tokenizer_max_bytes if recipe.tokenizer.startswith("bpe:") else None
        share = 1.0 if total is None or most is None else min(1.0, most / max(1, total))
        taken, allowed, shown = 0, 0.0, total and int(total * share)
        with progress_bar(f"tokenizer {recipe.tokenizer}", shown, "B") as bar:
            for number, file in enumerate(self.corpus.files):
                allowed += share * (file.size or 0)
                for piece in self.plan.pieces(number, BadText(recipe.on_bad_text)):
                    self._obey()
                    if most is not None and (taken >= most or (share < 1 and taken >= allowed)):
                        break
                    bar.update(piece.stored)
                    if piece.split == "train" and piece.text:
                        taken += len(piece.text.encode())
                        yield from _in_blocks(piece.text)

    def _obey(self) -> None:
        if self.stop.signal_name is not None:
            raise Stopped(f"stopped by {self.stop.signal_name} while the tokenizer was made; "
                          f"to start again: {resume_command()}")


def _in_blocks(text: str) -> Iterator[str]:
    """Text in parts that a trainer has room for: of 256 at once, it keeps every word's place."""
    start = 0
    while start < len(text):
        block = text[start:start + TRAINING_CHARACTERS]
        if start + len(block) < len(text):
            block = block[:safe_cut(block) or len(block)]
        yield block
        start += len(block)
