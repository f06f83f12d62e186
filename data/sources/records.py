"""Files of records: JSON lines, JSON, CSV, parquet, and data sets of the Hugging Face Hub.

Each reader yields (line, text) per record, in order, and hands what it cannot use to the policy for
bad text. Real libraries do the reading; those that not everybody needs are imported when used.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

from data.sources.bad_text import BadText
from data.sources.files import File
from data.sources.json_values import JsonValues
from data.sources.streams import BrokenFile, Meter, open_seekable, open_text
from data.sources.transcoding import in_terms_of
from gpt.errors import UserError
from gpt.files import separator_of

RECORD_BYTES = 1 << 25  # longer lines are bad text: a bound on memory
_INSTALL = "pip install 'gpt-toolkit[data]'"


class TextField:
    """Which text a record stands for: a field, or a template of several."""

    def __init__(self, spec: str):
        self.names = re.findall(r"\{([^{}]+)\}", spec)
        self._template = spec if self.names else None
        self.names = self.names or [spec]

    def of(self, record: Any) -> str:
        """The text of a record. Raises ValueError saying what is wrong with it."""
        if not isinstance(record, dict):
            raise ValueError(f"a record is an object with fields, not {_kind(record)}")
        if self._template is None:
            value = _lookup(record, self.names[0])
            if not isinstance(value, str):
                raise ValueError(f"its field {self.names[0]!r} is {_kind(value)}, not text")
            return value
        return re.sub(r"\{([^{}]+)\}", lambda m: _shown(_lookup(record, m[1]), m[1]),
                      self._template)


def _lookup(record: dict[str, Any], name: str) -> Any:
    """A field by name; with dots, a field inside a field."""
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    if dot and isinstance(record.get(head), dict):
        return _lookup(record[head], rest)
    fields = ", ".join(str(key)[:40] for key in list(record)[:8]) or "none"
    raise ValueError(f"it has no field {name!r} (its fields: {fields}); name the right one with "
                     "text_field=, or take the file as plain text with format=text")


def _shown(value: Any, name: str) -> str:
    if value is None or isinstance(value, (dict, list)):
        raise ValueError(f"its field {name!r} is {_kind(value)}, not text")
    return str(value)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false",
             type(None): "null", bytes: "bytes"}
    return kinds.get(type(value), "a number")


class Problem(NamedTuple):
    """A record that cannot be used as it is; `mended` is what can be made of it, if anything."""

    text: str
    mended: str | None = None


def read_records(file: File, bad_text: BadText, meter: Meter) -> Iterator[str]:
    """The texts of a file's records, in order."""
    reader = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv,
              "parquet": _read_parquet, "datasets": _read_datasets}[file.format]
    line = 0
    try:
        for line, found in reader(file, TextField(file.text_field), meter):
            text = _without_surrogates(found)
            if isinstance(text, str):
                yield text
            elif text.mended is not None and bad_text.policy == "replace":
                bad_text.replaced(file.path, line, in_terms_of(file.encoding, text.text))
                yield text.mended
            else:
                bad_text.skipped(file.path, line, in_terms_of(file.encoding, text.text))
    except BrokenFile as error:
        bad_text.skipped(file.path, error.line or line + 1, in_terms_of(file.encoding, str(error)))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _without_surrogates(found: str | Problem) -> str | Problem:
    """Half a surrogate pair is a problem, too; what has another one is mended all the same."""
    text = found if isinstance(found, str) else found.mended or ""
    if text.isascii() or not (match := _SURROGATE.search(text)):
        return found
    problem = (found.text if isinstance(found, Problem)
               else f"half a surrogate pair (\\u{ord(match[0]):x}) stands alone")
    return Problem(problem, _SURROGATE.sub("\ufffd", text))


def _text_of(field: TextField, record: Any) -> str | Problem:
    try:
        return field.of(record)
    except ValueError as error:
        return Problem(str(error))


def bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a stream; None for one that is longer than RECORD_BYTES."""
    while line := stream.readline(RECORD_BYTES):
        if len(line) < RECORD_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(RECORD_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


_TOO_LONG = Problem(f"the line is longer than {RECORD_BYTES >> 20} MiB")


def _read_jsonl(file: File, field: TextField, meter: Meter) -> Iterator[tuple[int, str | Problem]]:
    with open_text(file, meter) as stream:
        for number, line in enumerate(bounded_lines(stream), 1):
            if line is None:
                yield number, _TOO_LONG
            elif line.removeprefix(codecs.BOM_UTF8).strip():
                yield number, _json_line(line, field)


def _json_line(line: bytes, field: TextField) -> str | Problem:
    try:
        return _text_of(field, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        mended = _json_line(line.decode("utf-8-sig", "replace").encode(), field)
        return Problem(f"the text is not UTF-8 ({error.reason})",
                       mended if isinstance(mended, str) else None)
    except (ValueError, RecursionError) as error:
        return Problem(f"it is not valid JSON ({getattr(error, 'msg', error)})")


def _read_json(file: File, field: TextField, meter: Meter) -> Iterator[tuple[int, str | Problem]]:
    """An array of records, or records one after the other."""
    with open_text(file, meter) as stream:
        for line, record in JsonValues(stream, RECORD_BYTES):
            text = _text_of(field, record)
            if isinstance(text, str) and _NO_UTF8.search(text):
                text = Problem("the text is not UTF-8", _NO_UTF8.sub(_as_decoded, text))
            yield line, text


_NO_UTF8 = re.compile("[\udc80-\udcff]+")  # bytes, as JsonValues passes them on


def _as_decoded(match: re.Match[str]) -> str:
    return match[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_csv(file: File, field: TextField, meter: Meter) -> Iterator[tuple[int, str | Problem]]:
    csv.field_size_limit(RECORD_BYTES)
    with open_text(file, meter) as stream:
        lines = _CsvLines(stream)
        if not (first := next(lines, "")):
            return
        rows = csv.reader(chain([first], lines),
                          delimiter=dict(file.options)["delimiter"] or separator_of(first))
        header: list[str] = []
        while True:
            before = rows.line_num
            try:
                row = next(rows)
                problem = lines.take_problem()
            except StopIteration:
                return
            except csv.Error as error:
                row, problem = [], lines.take_problem() or f"it is not valid CSV ({error})"
                if rows.line_num > before + 1:  # inside a cell, whose end only it would know
                    raise BrokenFile(problem, before + 1) from error
            if not header and problem:
                raise BrokenFile(f"in the names of the columns, {problem}")
            if not header:
                header = row
            elif row or problem:
                text = _cell(header, row, field)
                yield rows.line_num, _with(problem, text)


def _cell(header: list[str], row: list[str], field: TextField) -> str | Problem:
    if any(row[len(header):]):
        return Problem(f"it has {len(row)} cells, and the columns are {len(header)}; text that "
                       "contains the separator needs quotes around it")
    return _text_of(field, dict.fromkeys(header) | dict(zip(header, row, strict=False)))


def _with(problem: str, text: str | Problem) -> str | Problem:
    """A text that has a problem, if it has one; what it could be read as is its mended form."""
    return Problem(problem, text if isinstance(text, str) else None) if problem else text


class _CsvLines:
    """Lines for the csv module, which asks for as many as a record has."""

    def __init__(self, stream: BinaryIO):
        self._lines = bounded_lines(stream)
        self._encoding = "utf-8-sig"
        self._problem = ""

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:  # in the middle of a record, if that is returned at all
            self._problem = self._problem or "a cell in quotes does not end"
            raise
        encoding, self._encoding = self._encoding, "utf-8"
        if line is None:
            self._problem = _TOO_LONG.text
            return "\n"
        try:
            return line.decode(encoding)
        except UnicodeDecodeError as error:
            self._problem = f"the text is not UTF-8 ({error.reason})"
            return line.decode(encoding, "replace")

    def take_problem(self) -> str:
        """What was wrong since the last call."""
        taken, self._problem = self._problem, ""
        return taken


def _read_parquet(file: File, field: TextField,
                  meter: Meter) -> Iterator[tuple[int, str | Problem]]:
    pyarrow = _library("pyarrow", file)
    parquet = _library("pyarrow.parquet", file)
    with open_seekable(file, meter) as stream:
        try:
            table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            columns = sorted({_column(name, table.schema_arrow.names) for name in field.names})
            missing = [c for c in columns if c not in table.schema_arrow.names]
            if missing:
                raise UserError(f"{file.path} has no column {missing[0]!r}; it has "
                                f"{', '.join(table.schema_arrow.names)}: name one with text_field=")
            number = 0
            for batch in table.iter_batches(batch_size=64, columns=columns, use_threads=False):
                for record in _rows(batch, pyarrow):
                    number += 1
                    yield number, _row_text(record, field)
        except (pyarrow.ArrowException, OSError, EOFError) as error:
            if getattr(error, "errno", None) is not None:  # the disk, not the file
                raise
            raise BrokenFile(f"it is no sound parquet file ({' '.join(str(error).split())})"
                             ) from error


def _column(name: str, columns: list[str]) -> str:
    return name if name in columns else name.partition(".")[0]


def _rows(batch: Any, pyarrow: Any) -> Iterator[dict[str, Any] | Problem]:
    """The rows of a batch as records; where text is not UTF-8, all of it arrives as bytes."""
    try:
        rows = batch.to_pylist()
    except (ValueError, ArithmeticError):  # no UTF-8, or a date that Python does not have
        columns = [_without_text(column, pyarrow.types) for column in batch.columns]
        loose = pyarrow.RecordBatch.from_arrays(columns, batch.schema.names)
        rows = (_row(loose.slice(i, 1)) for i in range(len(loose)))
    yield from rows


def _without_text(column: Any, types: Any) -> Any:
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = types.is_string(column.type) or types.is_large_string(column.type)
    return column.cast("large_binary") if is_text else column


def _row(batch: Any) -> dict[str, Any] | Problem:
    try:
        return batch.to_pylist()[0]
    except (ValueError, ArithmeticError) as error:
        return Problem(f"it cannot be read ({' '.join(str(error).split())})")


def _row_text(record: dict[str, Any] | Problem, field: TextField) -> str | Problem:
    """A row's text; columns of bytes are UTF-8."""
    if isinstance(record, Problem):
        return record
    problem = ""
    for name, value in record.items():
        if isinstance(value, bytes):
            record[name] = value.decode("utf-8", "replace")
            if record[name].encode() != value:
                problem = f"the text of {name!r} is not UTF-8"
    return _with(problem, _text_of(field, record))


def _read_datasets(file: File, field: TextField,
                   meter: Meter) -> Iterator[tuple[int, str | Problem]]:
    datasets = _library("datasets", file)
    options = dict(file.options)
    try:
        stream = datasets.load_dataset(file.path, options["subset"], split=options["split"],
                                       revision=options["revision"], streaming=True)
        for number, record in enumerate(stream, 1):
            yield number, _text_of(field, record)
    except Exception as error:  # whatever the library and the network raise
        raise UserError(f"the Hugging Face dataset {file.path} cannot be read: "
                        f"{type(error).__name__}: {' '.join(str(error).split())}; without a "
                        "network, name the folder that its files lie in as the source") from error


def _library(name: str, file: File) -> Any:
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"reading {file.path} needs the package {name.partition('.')[0]}: "
                        f"{_INSTALL}") from error
