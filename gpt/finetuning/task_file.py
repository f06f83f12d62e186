"""Files of task data as records: JSON lines, JSON, tables, and plain text.

What is wrong with a file or a record is said with the line it is on, before anything is learned.
Nothing is mended on the way: a guess would be trained on.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import UserError
from gpt.files import separator_of

Records = Iterator[tuple[str, Any]]

_BLANKS = re.compile(r"[ \t\r\n]*")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_JSON_HINT = "a .jsonl file has one whole object per line, a .json file an array of objects"


def read_rows(path: Path) -> Records:
    """Every record of a file as (where, value), in order; where is file and line, for errors.

    Values are what JSON has (in a table an object per row, in plain text {"text": all of it}), and
    their texts can be written as UTF-8. Raises UserError.
    """
    is_empty = True
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name one file of task data in it")
        with path.open("rb") as stream:
            for row in _reader(path)(path, stream):
                is_empty = False
                yield row
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if is_empty:
        raise UserError(f"{path} has no records; write at least one into it")


def _reader(path: Path) -> Callable[[Path, BinaryIO], Records]:
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_file,
               ".csv": _table, ".tsv": _table, ".parquet": _parquet, ".txt": _text, ".md": _text}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: what kind of file is this? Its name must end in "
                        f"{', '.join(readers)}")
    return readers[path.suffix.lower()]


def _text(path: Path, stream: BinaryIO) -> Records:
    text = _decoded(stream.read(), path)
    if text.strip():
        yield f"{path}, line 1", {"text": text}


def _decoded(data: bytes, path: Path, line: int = 1) -> str:
    """UTF-8 with or without a byte-order mark. line: where in the file data begin."""
    if line == 1 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} begins with the byte-order mark of UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[:error.start], error.object[error.start]
        line, column = line + before.count(b"\n"), len(before) - before.rfind(b"\n")
        raise UserError(f"{path}, line {line}: byte {column} of the line (0x{byte:02x}) is not "
                        "UTF-8; save the file as UTF-8") from error


def _json_lines(path: Path, stream: BinaryIO) -> Records:
    for number, line in enumerate(stream, 1):
        text = _JsonText(_decoded(line, path, number).rstrip("\r\n"), path, number)
        if text.peek():
            yield text.value()
        if text.peek():
            raise text.broken("something follows the record")


def _json_file(path: Path, stream: BinaryIO) -> Records:
    """An array of records, or, as in many files of this name, one record after the other."""
    text = _JsonText(_decoded(stream.read(), path), path)
    if text.peek() == "[":
        yield from text.items()
        if text.peek():
            raise text.broken("something follows the array")
    while text.peek():
        yield text.value()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = _twice(name for name, _ in pairs)
        raise ValueError(f"the field {twice[:40]!r} is given twice; keep one of them")
    return found


def _twice(names: Iterable[str]) -> str:
    """The first name that stands there more than once; "" if none does."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null or a number")


_decode = json.JSONDecoder(object_pairs_hook=_refuse_duplicates,
                           parse_constant=_refuse_constant).raw_decode


class _JsonText:
    """Reads one JSON value after the other from a text, and knows the line it is on."""

    def __init__(self, text: str, path: Path, line: int = 1):
        self._text, self._path, self._at, self._line = text, path, 0, line

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        self._move(_BLANKS.match(self._text, self._at).end())  # type: ignore[union-attr]
        return self._text[self._at:self._at + 1]

    def items(self) -> Records:
        """The values of an array."""
        self._move(self._at + 1)
        while self.peek() != "]":
            yield self.value()
            if self.peek() not in (",", "]"):
                raise self.broken("',' or ']' must follow")
            if self.peek() == ",":
                self._move(self._at + 1)
                if self.peek() == "]":
                    raise self.broken("a comma stands before ']'")
        self._move(self._at + 1)

    def value(self) -> tuple[str, Any]:
        """The next value, and where it is."""
        self.peek()
        where, start = f"{self._path}, line {self._line}", self._at
        try:
            value, end = _decode(self._text, start)
            if _ESCAPED_SURROGATE.search(self._text, start, end):
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            problem = re.sub("( starting)? at$", "", error.msg)
            raise self.broken(problem, error.pos) from error
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: \\u{ord(error.object[error.start]):x} is half a surrogate "
                            "pair and no character; take it out, or write both halves") from error
        except RecursionError as error:
            raise UserError(f"{where}: nested too deeply; task data need a few levels") from error
        except ValueError as error:  # of the two hooks, or a number of thousands of digits
            raise UserError(f"{where}: {error}") from error
        self._move(end)
        return where, value

    def broken(self, problem: str, at: int | None = None) -> UserError:
        """What to raise where the text is no JSON."""
        at = self._at if at is None else at
        line = self._line + self._text.count("\n", self._at, at)
        column = at - self._text.rfind("\n", 0, at)
        before = self._text[:at].rstrip()
        if self._text[at:at + 1] == "}" and before.endswith(","):
            problem = "a comma stands before '}'"
        return UserError(f"{self._path}, line {line}, column {column}: not valid JSON "
                         f"({problem}); {_JSON_HINT}")

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to


def _table(path: Path, stream: BinaryIO) -> Records:
    """Values separated by commas, tabs or semicolons, under a row of names."""
    text = _decoded(stream.read(), path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    separator = "\t" if path.suffix.lower() == ".tsv" else separator_of(text)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        where = f"{path}, line {lines.line_num + 1}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{where}: not valid CSV ({error}); a cell that begins with a quote "
                            "ends with one, and quotes inside it are written twice") from error
        if not cells:
            continue
        if not names:
            names = _header(cells, where)
        elif len(cells) != len(names):
            raise UserError(f"{where}: the row and the header differ in length ({len(cells)} and "
                            f"{len(names)} cells); text with separators or line breaks in it "
                            "needs quotes around it")
        else:
            yield where, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _header(cells: list[str], where: str) -> list[str]:
    """The names of the columns. One without a name is a row number, as pandas writes it."""
    names = [cell.strip() for cell in cells]
    if twice := _twice(filter(None, names)):
        raise UserError(f"{where}: the header names the column {twice[:40]!r} twice; rename one")
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise UserError(f"{where}: the header is one name with {other!r} in it; separate columns "
                        "by commas, semicolons or tabs in a .csv file, by tabs in a .tsv file")
    return names


def _parquet(path: Path, stream: BinaryIO) -> Records:
    try:
        pyarrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise UserError(f"reading {path} needs the package pyarrow: pip install "
                        "'gpt-toolkit[data]'") from error
    row = 0
    try:
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise UserError(f"{path} has two columns of one name; rename one of them")
        for batch in table.iter_batches(batch_size=1024, use_threads=False):
            for value in _values(batch):
                row += 1
                yield f"{path}, row {row}", value
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, ArithmeticError) as error:
        if getattr(error, "errno", None) is not None:  # the disk, not the file
            raise
        raise UserError(f"{path}, row {row + 1}: not a sound parquet file "
                        f"({' '.join(str(error).split())}); write or download it again") from error


def _values(batch: Any) -> Iterator[Any]:
    """A batch's rows as objects; one at a time where the batch has a row that cannot be read."""
    try:
        yield from batch.to_pylist()
    except (ValueError, ArithmeticError):  # text that is not UTF-8, a date beyond Python's
        for i in range(len(batch)):
            yield from batch.slice(i, 1).to_pylist()
