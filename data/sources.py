"""Where text comes from: files, folders, globs, and the Python library that is on every machine.

A source yields documents. A document has a name that does not depend on where the corpus lies (its
path inside the source), so that a split by name stays the same on every machine.
"""

from __future__ import annotations

import codecs
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from gpt.errors import UserError

PYTHON_LIBRARY = "python-library"
_LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".xml", ".csv", ".json", ".jsonl",
                 ".yaml", ".toml", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".sh"}
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """One file of a corpus."""

    name: str
    path: Path
    size: int  # bytes


@dataclass
class BadText:
    """What to do with bytes that are not UTF-8, and how often it was done."""

    policy: str  # error | replace | skip
    documents: Counter[str] = field(default_factory=Counter)
    _seen: set[str] = field(default_factory=set)

    def count(self, document: Document) -> None:
        """Count a document once, however many passes read it."""
        if str(document.path) not in self._seen:
            self._seen.add(str(document.path))
            self.documents[{"replace": "replaced", "skip": "skipped"}[self.policy]] += 1


def list_documents(sources: list[str]) -> list[Document]:
    """All documents of all sources, in order. Raises UserError for a source without any."""
    documents: list[Document] = []
    for source in sources:
        found = list(_documents_of(source))
        if not found:
            raise UserError(f"the source {source} has no text: no files with a text suffix "
                            f"({', '.join(sorted(TEXT_SUFFIXES)[:6])}, …) lie there; name files "
                            "or a glob such as 'corpus/*.log' instead")
        documents += found
    return documents


def _documents_of(source: str) -> Iterator[Document]:
    if source == PYTHON_LIBRARY:
        yield from _walk(Path(sysconfig.get_paths()["stdlib"]), {".py"})
    elif Path(source).is_dir():
        yield from _walk(Path(source), TEXT_SUFFIXES)
    elif Path(source).is_file():
        yield _document(Path(source), Path(source).name)
    else:
        matches = sorted(glob(source, recursive=True))  # noqa: PTH207 (absolute patterns, too)
        paths = [Path(match) for match in matches if Path(match).is_file()]
        if not paths:
            raise UserError(f"the source {source} is no file or folder and matches no files; check "
                            "the path (relative paths start at the current folder)")
        base = os.path.commonpath([p.parent for p in paths])
        yield from (_document(path, path.relative_to(base).as_posix()) for path in paths)


def _walk(root: Path, suffixes: set[str]) -> Iterator[Document]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if path.suffix.lower() in suffixes and path.is_file():
                yield _document(path, path.relative_to(root).as_posix())


def _document(path: Path, name: str) -> Document:
    return Document(name, path, path.stat().st_size)


def read_pieces(document: Document, bad_text: BadText) -> Iterator[str]:
    """A document's text in pieces of about a megabyte, whatever its size.

    Pieces are cut where every tokenizer cuts too, so that encoding them one by one gives the tokens
    of the whole. A byte-order mark is dropped. Raises UserError for invalid text under the policy
    "error"; under "skip" the document yields nothing.
    """
    if bad_text.policy == "skip" and (line := _first_bad_line(document)):
        bad_text.count(document)
        return
    decoder = codecs.getincrementaldecoder("utf-8-sig")(
        "replace" if bad_text.policy == "replace" else "strict")
    kept, checked = "", False
    with document.path.open("rb") as file:
        while True:
            block = file.read(PIECE_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line = _first_bad_line(document)
                raise UserError(f"{document.path}, line {line}: the text is not UTF-8 "
                                f"({error.reason}); mend the file, or set on_bad_text=replace or "
                                "on_bad_text=skip") from error
            if bad_text.policy == "replace" and "\ufffd" in text and not checked:
                checked = True  # whether it was replaced, or stands in the file
                if _first_bad_line(document):
                    bad_text.count(document)
            kept += text
            if not block:
                break
            cut = safe_cut(kept)
            if cut:
                yield kept[:cut]
            kept = kept[cut:]
    if kept:
        yield kept


def _first_bad_line(document: Document) -> int:
    """The first line that is not UTF-8, counted from 1; 0 when all are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with document.path.open("rb") as file:
        while True:
            block = file.read(PIECE_BYTES)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                return line + error.object[:error.start].count(b"\n")
            if not block:
                return 0


_AFTER_WORD = re.compile(r"(?<=[^\W_])(?=\s)")
_LOOK_BACK = 1 << 16


def safe_cut(text: str) -> int:
    """The last place where text may be cut without changing its tokens.

    Between a word and the blank after it: there the patterns of all our tokenizers end a piece. A
    text without such a place is kept whole up to 16 pieces, then cut anywhere, to bound memory.
    """
    start = max(0, len(text) - _LOOK_BACK)
    cut = 0
    for match in _AFTER_WORD.finditer(text, start):
        cut = match.end()
    if cut:
        return cut
    return len(text) if len(text) >= 16 * PIECE_BYTES else 0
