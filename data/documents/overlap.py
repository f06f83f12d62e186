"""Which 13-grams of words an evaluation text shares with training.

A text counts as overlapping if 13 words in a row, without regard to case and punctuation, stand in
the training split too. Source: Brown et al. 2020 (GPT-3), appendix C. The texts are read back from
the shards, a piece at a time; n-grams are compared by 64-bit hashes, which are the only thing that
is kept of them.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.documents.corpus import Corpus
from data.recipe import Recipe, Source
from data.sources.bad_text import BadText
from data.sources.files import FETCHED, list_files
from gpt.errors import UserError
from gpt.files import write_json
from gpt.machine.progress import progress_bar
from gpt.shards import Manifest, TokenStream, map_shards
from gpt.tokenizer import Tokenizer

OVERLAP = "overlap.json"
VALIDATION = "validation"
N = 13
MOST_NGRAMS = 1 << 24  # that are looked for; of more, every k-th hash
MOST_LISTED = 100
_TOKENS_AT_ONCE = 1 << 18
_MOST_WORDS_KNOWN = 1 << 20
_LONGEST_WORD = 1 << 12  # a text without blanks is no single word
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Text = Iterable[str]  # a document in pieces


@dataclass
class _Grams:
    """The n-grams of a piece of text: their hashes, and the words they begin at."""

    hashes: np.ndarray
    words: list[str]


class Hasher:
    """Turns documents into hashes of their n-grams, (k,) uint64 for k n-grams."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def grams(self, text: Text) -> Iterator[_Grams]:
        """A document's n-grams, piece by piece."""
        words: list[str] = []
        rest = ""
        for piece in text:
            folded = rest + piece.casefold()  # which, unlike lower(), looks at no neighbours
            found = re.findall(r"\w+", folded)
            rest = found.pop() if found and folded.endswith(found[-1]) else ""
            if len(rest) > _LONGEST_WORD:
                found, rest = [*found, rest], ""
            words = words[-(N - 1):] + found
            yield self._hashed(words)
        yield self._hashed([*words[-(N - 1):], rest] if rest else [])

    def _hashed(self, words: list[str]) -> _Grams:
        numbers = np.fromiter(map(self._number, words), dtype=np.uint64, count=len(words))
        count = max(0, len(words) - N + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for i in range(N):
            hashes = (hashes ^ numbers[i:i + count]) * _PRIME
            hashes ^= hashes >> np.uint64(29)
        return _Grams(hashes, words)

    def _number(self, word: str) -> int:
        number = self._known.get(word)
        if number is None:
            if len(self._known) >= _MOST_WORDS_KNOWN:
                self._known.clear()
            data = word.encode("utf-8", "surrogatepass")
            number = self._known[word] = zlib.crc32(data) << 32 | zlib.adler32(data)
        return number


class _Wanted:
    """The distinct hashes to look for; of too many, every k-th, k being `one_in`."""

    def __init__(self) -> None:
        self.hashes, self.one_in = np.empty(0, dtype=np.uint64), 1
        self._waiting: list[np.ndarray] = []
        self._count = 0

    @classmethod
    def of(cls, documents: Iterable[tuple[str, Text]], hasher: Hasher) -> _Wanted:
        """The n-grams of documents."""
        wanted = cls()
        for _, text in documents:
            for grams in hasher.grams(text):
                wanted._add(grams.hashes)
        wanted._sort()
        return wanted

    def _add(self, hashes: np.ndarray) -> None:
        self._waiting.append(hashes[hashes % np.uint64(self.one_in) == 0])
        self._count += len(self._waiting[-1]) + 1
        if self._count > MOST_NGRAMS // 4:
            self._sort()

    def _sort(self) -> None:
        self.hashes = np.unique(np.concatenate([self.hashes, *self._waiting]))
        self._waiting, self._count = [], 0
        while len(self.hashes) > MOST_NGRAMS:
            self.one_in *= 2
            self.hashes = self.hashes[self.hashes % np.uint64(self.one_in) == 0]

    def look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(whether each hash is wanted, the places in `hashes` of those that are)"""
        places = np.searchsorted(self.hashes, hashes)
        known = places < len(self.hashes)
        known[known] = self.hashes[places[known]] == hashes[known]
        return known, places[known]


def check_evaluation(recipe: Recipe, folder: Path) -> None:
    """Read an evaluation set of the user's before long work rests on it. Raises UserError."""
    if recipe.overlap_with in (None, VALIDATION):
        return
    if not len(_Wanted.of(_own_documents(recipe, folder), Hasher()).hashes):
        raise UserError(f"overlap_with={recipe.overlap_with}: no document there has {N} words, so "
                        "there is nothing to look for; leave overlap_with out")


def report_overlap(recipe: Recipe, manifest: Manifest, folder: Path) -> None:
    """Write overlap.json: how much of the evaluation text stands in the training split."""
    tokenizer, hasher = Tokenizer.load(folder / "tokenizer"), Hasher()
    train = map_shards(folder, manifest, "train")

    def evaluation() -> Iterator[tuple[str, Text]]:
        if recipe.overlap_with == VALIDATION:
            yield from _documents(map_shards(folder, manifest, "val"), tokenizer)
        else:
            yield from _own_documents(recipe, folder)

    wanted = _Wanted.of(evaluation(), hasher)
    found = np.zeros(len(wanted.hashes), dtype=bool)
    touched = 0
    with progress_bar("overlap", len(train), "tok") as bar:
        for _, text in _documents(train, tokenizer, bar.update):
            places = [wanted.look_up(grams.hashes)[1] for grams in hasher.grams(text)]
            found[np.concatenate(places)] = True
            touched += any(map(len, places))
    report = _report(evaluation(), hasher, wanted, found)
    write_json(folder / OVERLAP, {
        "n": N, "evaluation": recipe.overlap_with, **report,
        "training_documents_with_overlap": touched, "one_in": wanted.one_in})


def _report(documents: Iterable[tuple[str, Text]], hasher: Hasher, wanted: _Wanted,
            found: np.ndarray) -> dict[str, Any]:
    """Counts over the evaluation documents, and those of them with the most overlap."""
    most: list[dict[str, Any]] = []
    count = with_overlap = ngrams = shared = 0
    for name, text in documents:
        count, looked_for, hits, example = count + 1, 0, 0, ""
        for grams in hasher.grams(text):
            known, places = wanted.look_up(grams.hashes)
            hit = found[places]
            looked_for, hits = looked_for + len(places), hits + int(hit.sum())
            if hit.any() and not example:
                start = int(np.flatnonzero(known)[hit.argmax()])
                example = " ".join(grams.words[start:start + N])
        ngrams, shared = ngrams + looked_for, shared + hits
        if hits:
            with_overlap += 1
            most.append({"document": name, "ngrams": looked_for, "shared": hits, "first": example})
            if len(most) > 2 * MOST_LISTED:
                most = _with_most(most)
    return {"documents": count, "documents_with_overlap": with_overlap, "ngrams": ngrams,
            "ngrams_shared": shared, "most": _with_most(most)}


def _with_most(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with the largest share of overlap; the earlier of equals first."""
    return sorted(entries, key=lambda entry: -entry["shared"] / entry["ngrams"])[:MOST_LISTED]


def _documents(stream: TokenStream, tokenizer: Tokenizer,
               on_tokens: Any = lambda count: None) -> Iterator[tuple[str, Text]]:
    """(its number, its text in pieces) for each document of a split."""
    ends = np.append(stream.document_starts[1:], len(stream))
    for number, (start, stop) in enumerate(zip(stream.document_starts, ends, strict=True)):
        yield str(number), _decoded(stream, int(start), int(stop) - 1, tokenizer)
        on_tokens(int(stop - start))


def _decoded(stream: TokenStream, start: int, stop: int, tokenizer: Tokenizer) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for begin in range(start, stop, _TOKENS_AT_ONCE):
        ids = stream.read(begin, min(stop, begin + _TOKENS_AT_ONCE))
        yield decoder.decode(tokenizer.decode_bytes(ids.tolist()))


def _own_documents(recipe: Recipe, folder: Path) -> Iterator[tuple[str, Text]]:
    """The documents of an evaluation set of the user's."""
    source = Source(path=recipe.overlap_with or "", format=recipe.format,
                    text_field=recipe.text_field, encoding=recipe.encoding)
    files = list_files([source], folder / FETCHED / "evaluation")
    bad_text = BadText(recipe.on_bad_text)
    corpus = Corpus(recipe.model_copy(update={
        "sources": [source], "drop_duplicates": False, "min_characters": 0,
        "max_characters": None}), files)
    for i, file in enumerate(files):
        for document in corpus.documents(i, bad_text):
            yield f"{file.name}:{document.place[1] + 1}", document.pieces(bad_text)
