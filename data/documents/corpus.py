"""The documents of a corpus, in order, cleaned as the recipe says."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Literal

from data.recipe import Recipe
from data.sources.archives import members, tell_members_left_out
from data.sources.bad_text import BadText
from data.sources.files import SOME_SUFFIXES, File
from data.sources.records import read_records
from data.sources.streams import Meter
from data.sources.text import cut_pieces, in_pieces, read_text
from gpt.errors import UserError, WorkFailed


@dataclass(frozen=True)
class Document:
    """A text that training sees as a whole: a file of text, or a record.

    place: (its file's place in the corpus, its own in the file). pieces: its text, of which no more
    than a piece is in memory; it can be read again, and notes bad text in what it is given.
    """

    place: tuple[int, int]
    name: str  # decides on which side of the split it falls
    pieces: Callable[[BadText], Iterator[str]]
    file: File
    number: int | None = None  # of a record in its file, from 1


class Corpus:
    """All documents of some files. Iterating again gives the same."""

    def __init__(self, recipe: Recipe, files: Sequence[File], seen: SeenTexts | None = None):
        self.recipe, self.files = recipe, files
        self.meter = Meter()
        self._seen = seen
        self._told: set[int] = set()  # archives of which it was said what is left out

    @property
    def stored_bytes(self) -> int | None:
        """Size of all files as they are stored; None if only reading would tell."""
        return stored_bytes(self.files)

    @property
    def cleans(self) -> bool:
        """Whether documents may be left out for what they say."""
        recipe = self.recipe
        return bool(recipe.min_characters or recipe.max_characters or recipe.drop_duplicates)

    def documents(self, file: int, bad_text: BadText) -> Iterator[Document]:
        """Every document of a file that stays; what is left out is counted in `bad_text`."""
        for document in self._read(file, bad_text):
            if not self.cleans or self._stays(document, bad_text):
                yield self._normalized(document)

    def _read(self, number: int, bad_text: BadText) -> Iterator[Document]:
        place = zip(repeat(number), count())
        for file in self._opened(number, bad_text):
            if file.is_one_document:
                yield Document(next(place), file.name, partial(self._text, file), file)
            else:
                for i, text in enumerate(read_records(file, bad_text, self.meter), 1):
                    yield _record(next(place), text, self.recipe.normalize, file, i)

    def _text(self, file: File, bad_text: BadText) -> Iterator[str]:
        return read_text(file, bad_text, self.meter)

    def _opened(self, number: int, bad_text: BadText) -> Iterator[File]:
        """The members of an archive; any other file by itself."""
        file, is_empty = self.files[number], True
        if not file.is_archive:
            yield file
            return
        source, left_out = self.recipe.sources[file.source], Counter[str]()
        for member in members(file, source, bad_text, left_out):
            is_empty = False
            yield member
        if number not in self._told:
            self._told.add(number)
            tell_members_left_out(file, left_out)
        if is_empty and [other.source for other in self.files].count(file.source) == 1:
            raise UserError(f"the source {source.path} has no text: the archive has no sound "
                            f"members with a known suffix ({SOME_SUFFIXES}); unpack it, and name "
                            "files or a glob such as 'corpus/*.log' instead")

    def _normalized(self, document: Document) -> Document:
        """The document in the recipe's Unicode form.

        Where pieces are cut, no characters join; but a word may have become something else there,
        so they are cut again.
        """
        form = self.recipe.normalize
        if form == "none":
            return document

        def pieces(bad_text: BadText) -> Iterator[str]:
            changed = False
            for piece in document.pieces(bad_text):
                if not unicodedata.is_normalized(form, piece):
                    bad_text.tally.counts["normalized"] += not changed
                    changed, piece = True, unicodedata.normalize(form, piece)
                yield piece

        return replace(document, pieces=lambda noted: cut_pieces(pieces(noted)))

    def _stays(self, document: Document, bad_text: BadText) -> bool:
        """Measure a document, and count it if a cleaning step leaves it out."""
        recipe, reason = self.recipe, ""
        characters, digest = 0, hashlib.blake2b(digest_size=16)
        for piece in self._normalized(document).pieces(BadText(bad_text.policy)):
            characters += len(piece)
            digest.update(piece.encode())
        if characters < recipe.min_characters:
            reason = "too_short"
        elif characters > (recipe.max_characters or characters):
            reason = "too_long"
        elif self._seen is not None and not self._seen.is_first(digest.digest(), document.place):
            reason = "duplicates"
        if not reason or not characters:  # an empty text, or one that is skipped, is no document
            return True
        bad_text.tally.counts[reason] += 1
        return False


def stored_bytes(files: Iterable[File]) -> int | None:
    """Size of files as they are stored; None if only reading would tell."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _record(place: tuple[int, int], text: str, form: Literal["none", "NFC", "NFKC"], file: File,
            number: int) -> Document:
    """A record, named by its text, so that equal ones fall on the same side of the split."""
    same = text if form == "none" else unicodedata.normalize(form, text)
    name = hashlib.blake2b(same.encode(), digest_size=16).hexdigest()
    return Document(place, name, lambda noted: in_pieces(text), file, number)


class SeenTexts:
    """Which texts stood in a corpus before: 16 bytes of hash each, on disk rather than in memory.

    It may be told the same document twice, as when a preparation is continued.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._named_failure():
            self._file = sqlite3.connect(path, check_same_thread=False)  # tokenizers has its own
            self._file.execute("CREATE TABLE IF NOT EXISTS seen (text BLOB PRIMARY KEY, "
                               "place INTEGER) WITHOUT ROWID")

    def is_first(self, digest: bytes, at: tuple[int, int]) -> bool:
        """Whether no other document before this one had the text."""
        place = at[0] << 40 | at[1]
        with self._named_failure():
            added = self._file.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, place))
            if added.rowcount:
                return True
            first = self._file.execute("SELECT place FROM seen WHERE text = ?", (digest,))
            return bool(first.fetchone()[0] == place)

    def save(self) -> None:
        """Bring what was added to the disk."""
        with self._named_failure():
            self._file.commit()

    def forget(self) -> None:
        """Take back what was added since."""
        self._file.rollback()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def _named_failure(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:  # a full disk, say
            raise WorkFailed(f"{self._path}: {error}") from error
