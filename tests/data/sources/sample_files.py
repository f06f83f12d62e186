"""Small corpora for tests: files, packed or not, and what is read of them."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from data.documents.corpus import Corpus
from data.recipe import Recipe, Source
from data.sources.bad_text import BadText
from data.sources.files import File, list_files
from data.sources.records import read_records
from data.sources.streams import Meter
from data.sources.text import read_text
from gpt.errors import UserError

zstandard = pytest.importorskip("zstandard", reason="the extra [data] is not installed")


def _frames(data: bytes) -> bytes:
    """Zstandard as its tools write it: several frames, of which one may be empty."""
    half = len(data) // 2
    return b"".join(map(zstandard.compress, (data[:half], b"", data[half:])))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _frames, ".zstd": zstandard.compress}


def write(path: str, content: str | bytes = "text") -> Path:
    """A file, with the folders that it lies in."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def files_of(*paths: str, **fields) -> list[File]:
    """The files of sources, all with the same fields."""
    return list_files([Source(path=path, **fields) for path in paths], Path("fetched"))


def file_of(path: str, content: str | bytes = b"", **fields) -> File:
    """One file of that content."""
    write(path, content)
    [file] = files_of(path, **fields)
    return file


def read(file: File, bad_text: BadText | None = None) -> list[str]:
    """The texts of a file: one, or those of its records."""
    bad_text = bad_text or BadText("error")
    if file.is_one_document:
        return ["".join(read_text(file, bad_text, Meter()))]
    return list(read_records(file, bad_text, Meter()))


def corpus_of(*paths: str, seen=None, **recipe) -> Corpus:
    """The corpus of a recipe with these sources."""
    made = Recipe(sources=list(paths), **recipe)
    return Corpus(made, list_files(made.sources, Path("fetched")), seen)


def documents(corpus: Corpus, bad_text: BadText | None = None) -> list[str]:
    """The texts of a corpus's documents, in order."""
    bad_text = bad_text or BadText(corpus.recipe.on_bad_text)
    return ["".join(document.pieces(bad_text)) for i in range(len(corpus.files))
            for document in corpus.documents(i, bad_text)]


def refusal(function: Callable[..., object], *args, **fields) -> str:
    """The line that a call is refused with."""
    with pytest.raises(UserError) as caught:
        function(*args, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)
