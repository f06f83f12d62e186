"""Files of task data give the records that people wrote, or one line that says what to mend."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.finetuning.fields import Fields
from gpt.finetuning.task_file import read_rows

SEEDED = settings(max_examples=150, derandomize=True, database=None, deadline=None)
ROWS = [{"prompt": "one\ntwo", "completion": ""}, {"prompt": "é 中 🙂", "completion": '"a", b'},
        {"prompt": " x\u2028", "completion": "\t\r\n"}]


def as_jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_table(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS = {".jsonl": as_jsonl, ".ndjson": as_jsonl, ".json": as_json, ".csv": as_table,
           ".tsv": lambda rows: as_table(rows, "\t"), ".parquet": as_parquet}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(name: str, data: bytes | str) -> list[tuple[str, Any]]:
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_rows(Path(name)))


def values(name: str, data: bytes | str) -> list[Any]:
    return [value for _, value in rows_of(name, data)]


def places(name: str, data: bytes | str) -> list[str]:
    return [where for where, _ in rows_of(name, data)]


def refusal(name: str, data: bytes | str) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(name, data)
    return str(caught.value)


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_records(suffix):
    assert values(f"task{suffix}", WRITERS[suffix](ROWS)) == ROWS
    assert values(f"TASK{suffix.upper()}", WRITERS[suffix](ROWS)) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_a_byte_order_mark_is_no_part_of_a_record(suffix):
    data = WRITERS.get(suffix, lambda rows: b"a text")(ROWS)
    assert values(f"task{suffix}", codecs.BOM_UTF8 + data) == values(f"task{suffix}", data)


@pytest.mark.parametrize("name", ["task.txt", "task.md"])
def test_a_text_is_one_record_to_the_last_byte(name):
    assert rows_of(name, "# A\r\n\nb\0 ") == [(f"{name}, line 1", {"text": "# A\r\n\nb\0 "})]


def test_lines_of_json_may_be_blank_end_as_in_windows_and_have_no_end():
    data = b'\r\n{"a": 1}\r\n \t\r\n\n{"b": "\\u0000"}'
    assert rows_of("task.jsonl", data) == [("task.jsonl, line 2", {"a": 1}),
                                           ("task.jsonl, line 5", {"b": "\0"})]


def test_a_json_file_may_hold_records_one_after_the_other():
    assert rows_of("task.json", '{"a": 1}\n{"a":\n 2}\n\n {"a": 3}') == [
        ("task.json, line 1", {"a": 1}), ("task.json, line 2", {"a": 2}),
        ("task.json, line 5", {"a": 3})]


def test_records_of_an_array_are_placed_at_the_line_where_they_begin():
    assert places("task.json", '\n[{"a": 1}, {"a":\n2},\n\n{"a": 3}\n]\n') == [
        "task.json, line 2", "task.json, line 2", "task.json, line 5"]


def test_records_of_a_table_are_placed_at_the_line_where_they_begin():
    assert rows_of("task.csv", 'text,label\r\n"a\r\nb",x\r\n\r\nc,y\r\n') == [
        ("task.csv, line 2", {"text": "a\r\nb", "label": "x"}),
        ("task.csv, line 5", {"text": "c", "label": "y"})]


def test_records_of_parquet_are_placed_by_their_row():
    assert places("task.parquet", as_parquet([{"a": i} for i in range(2000)])) == [
        f"task.parquet, row {i + 1}" for i in range(2000)]


def test_parquet_keeps_lists_numbers_and_what_is_not_there():
    rows = [{"turns": [{"role": "user", "weight": None}], "label": 3, "text": None}]
    assert values("task.parquet", as_parquet(rows)) == rows


def test_names_of_columns_are_read_without_blanks_and_a_row_number_is_no_field():
    assert values("task.csv", "\n, text , label\n0,a, b \n") == [{"text": "a", "label": " b "}]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_of_a_csv_file_shows_what_separates_its_columns(separator):
    assert values("task.csv", codecs.BOM_UTF8 + as_table(ROWS, separator)) == ROWS
    header, row = separator.join(["", "text", '"a ""b"""']), separator.join(["0", '",;\t"', "c"])
    assert values("task.csv", f"\r\n{header}\r\n{row}") == [{"text": ",;\t", 'a "b"': "c"}]


def test_a_comma_in_the_header_of_a_csv_file_counts_first():
    assert values("task.csv", "text,a;b\n1;2,3\n") == [{"text": "1;2", "a;b": "3"}]
    assert values("task.csv", "text\n1;2\n") == [{"text": "1;2"}]


def test_a_cell_may_be_longer_than_the_csv_module_expects():
    text = "x" * (csv.field_size_limit() + 1)
    assert values("task.csv", f"text\n{text}\n") == [{"text": text}]


def test_lines_are_read_when_they_are_asked_for():
    path = Path("task.jsonl")
    path.write_text('{"a": 1}\n{nonsense\n')
    rows = read_rows(path)
    assert next(rows) == ("task.jsonl, line 1", {"a": 1})
    with pytest.raises(UserError, match="line 2"):
        next(rows)


@pytest.mark.parametrize(("name", "data", "message"), [
    ("task.jsonl", b"", "has no records; write at least one into it"),
    ("task.json", b" []\n", "has no records"),
    ("task.csv", b"text,label\n\n", "has no records"),
    ("task.txt", b" \n", "has no records"),
    ("task.parquet", as_parquet([{"a": 1}][:0]), "has no records"),
    ("task.doc", b"x", ": what kind of file is this? Its name must end in .jsonl, .ndjson, .json, "
                       ".csv, .tsv, .parquet, .txt, .md"),
    ("task.jsonl", '{"a": 1}'.encode("utf-16"),
     "begins with the byte-order mark of UTF-16; save it as UTF-8"),
    ("task.csv", codecs.BOM_UTF16_BE, "begins with the byte-order mark of UTF-16"),
    ("task.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}',
     ", line 2: byte 11 of the line (0xe9) is not UTF-8; save the file as UTF-8"),
    ("task.jsonl", b'{"a": 1}\n\xff\xfe', ", line 2: byte 1 of the line (0xff) is not UTF-8"),
    ("task.csv", b"text\na\n\xffb\n", ", line 3: byte 1 of the line (0xff) is not UTF-8"),
    ("task.txt", b"\xef\xbb\xbfab\xe9", ", line 1: byte 3 of the line (0xe9) is not UTF-8")])
def test_a_file_that_is_empty_or_no_text_is_named(name, data, message):
    assert message in refusal(name, data)


@pytest.mark.parametrize(("data", "place", "problem"), [
    (b'{"a": 1}\n\n{"a": }\n', "line 3, column 7", "Expecting value"),
    (b'{"a": "x', "line 1, column 7", "Unterminated string"),
    (b'{"a": "x\ty"}', "line 1, column 9", "Invalid control character"),
    (b'{"a": 1} {"b": 2}', "line 1, column 10", "something follows the record"),
    (b'[\n{"a": 1}]', "line 1, column 2", "Expecting value"),
    (b'{"a": 1}\n{"a": 1,}', r"line 2, column \d", ".*comma.*")])
def test_a_line_that_is_not_json_is_named_with_its_column(data, place, problem):
    message = refusal("task.jsonl", data)
    assert re.match(f"task.jsonl, {place}: not valid JSON \\({problem}\\); ", message)
    assert message.endswith("; a .jsonl file has one whole object per line, a .json file an array "
                            "of objects")


@pytest.mark.parametrize(("data", "place", "problem"), [
    (b'[{"a": 1},\n {"a":\n 1 2}]', "line 3, column 4", "Expecting ',' delimiter"),
    (b'[{"a": 1},\n]', "line 2, column 1", "a comma stands before ']'"),
    (b'[{"a": 1}\n {"a": 2}]', "line 2, column 2", "',' or ']' must follow"),
    (b'[{"a": 1}', "line 1, column 10", "',' or ']' must follow"),
    (b"[", "line 1, column 2", "Expecting value"),
    (b'[{"a": 1}]\n{}', "line 2, column 1", "something follows the array")])
def test_a_file_that_is_not_json_is_named_with_line_and_column(data, place, problem):
    assert refusal("task.json", data).startswith(f"task.json, {place}: not valid JSON ({problem})")


@pytest.mark.parametrize(("data", "message"), [
    (b'{"a": {"b": 1, "b": 1}}', "the field 'b' is given twice; keep one of them"),
    (b'{"a": NaN}', "NaN is not JSON; write null or a number"),
    (b'{"a": -Infinity}', "-Infinity is not JSON"),
    (b"9" * 5000, "Exceeds the limit"),
    (b"[" * 100_000, "nested too deeply; task data need a few levels"),
    (b'{"\\uD83d": 1}', "\\ud83d is half a surrogate pair and no character; take it out, or write "
                        "both halves"),
    (b'{"a": [["x\\udc00"]]}', "\\udc00 is half a surrogate pair")])
def test_json_that_people_read_differently_is_named_by_its_line(data, message):
    assert f"task.jsonl, line 2: {message}" in refusal("task.jsonl", b"{}\n" + data)
    if b"[[[" not in data:
        assert f"task.json, line 2: {message}" in refusal("task.json", b"[\n" + data + b"]")


@pytest.mark.parametrize(("name", "data", "message"), [
    ("task.csv", b"a,b\n1,2\n1,2,3\n",
     "line 3: the row and the header differ in length (3 and 2 cells); text with separators or "
     "line breaks in it needs quotes around it"),
    ("task.csv", b"a,b\n1\n", "line 2: the row and the header differ in length (1 and 2 cells)"),
    ("task.csv", b'a\n"b" c\n',
     "line 2: not valid CSV (',' expected after '\"'); a cell that begins with a quote ends with "
     "one, and quotes inside it are written twice"),
    ("task.tsv", b'a\tb\n1\t"2\n3\t4', "line 2: not valid CSV (unexpected end of data)"),
    ("task.csv", b"a, a\n1,2\n", "line 1: the header names the column 'a' twice; rename one"),
    ("task.csv", b"a|b\n1|2\n",
     "line 1: the header is one name with '|' in it; separate columns by commas, semicolons or "
     "tabs in a .csv file, by tabs in a .tsv file"),
    ("task.csv", b"a;b\n1,2\n", "line 2: the row and the header differ in length (1 and 2 cells)"),
    ("task.tsv", b"a,b\n", "line 1: the header is one name with ',' in it")])
def test_what_is_wrong_with_a_table_is_named_by_its_line(name, data, message):
    assert f"{name}, {message}" in refusal(name, data)


def test_a_row_of_parquet_that_is_not_utf8_is_named():
    texts = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), sink)
    assert refusal("task.parquet", sink.getvalue()).startswith("task.parquet, row 2: not a sound")


def test_columns_of_parquet_have_different_names():
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    assert "task.parquet has two columns of one name; rename one" in refusal("task.parquet",
                                                                             sink.getvalue())


def test_parquet_that_is_cut_short_anywhere_is_refused():
    data = as_parquet(ROWS)
    assert values("task.parquet", data) == ROWS
    for length in range(0, len(data), 7):
        refusal("task.parquet", data[:length])


def test_without_pyarrow_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert refusal("task.parquet", b"") == (
        "reading task.parquet needs the package pyarrow: pip install 'gpt-toolkit[data]'")


def test_what_is_no_file_is_named():
    for path, message in [("none.jsonl", "cannot read none.jsonl: No such file or directory"),
                          (".", ". is a folder; name one file of task data in it"),
                          ("x" * 300 + ".json", "json: File name too long")]:
        with pytest.raises(UserError, match=re.escape(message) + "$"):
            next(read_rows(Path(path)))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(suffix, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *size: int | None) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        __next__ = read

    monkeypatch.setattr(Path, "open", lambda *_: Failing(bytes(99)))
    with pytest.raises(UserError, match=f"^cannot read task{suffix}: Input/output error$"):
        next(read_rows(Path(f"task{suffix}")))


def test_both_halves_of_a_surrogate_pair_are_a_character():
    assert values("task.jsonl", b'{"a": "\\ud83d\\ude00 \\\\ud83d"}') == [{"a": "😀 \\ud83d"}]


def test_names_of_fields_are_shown_on_one_line_and_not_all_of_them():
    fields = Fields({f"a{i}\n": i for i in range(9)} | {"x" * 99: 1}, "here")
    assert str(fields) == ", ".join(f"'a{i}\\n'" for i in range(8)) + ", …"
    assert str(Fields({"x" * 99: 1}, "here")) == "x" * 40
    assert str(Fields({}, "here")) == "none"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=3), max_leaves=8)


@SEEDED
@given(rows=st.lists(JSON, min_size=1, max_size=5), ascii_only=st.booleans())
def test_any_json_is_read_as_it_was_written(rows, ascii_only):
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert values("task.jsonl", lines) == rows
    assert values("task.json", json.dumps(rows, indent=1, ensure_ascii=ascii_only)) == rows


@SEEDED
@given(texts=st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"),
                                          max_size=9)] * 2), min_size=1, max_size=5))
def test_any_text_is_read_from_a_table_as_it_was_written(texts):
    rows = [{"prompt": a, "completion": b} for a, b in texts]
    for suffix in (".csv", ".tsv", ".parquet"):
        assert values(f"task{suffix}", WRITERS[suffix](rows)) == rows


FRAGMENTS = st.lists(st.sampled_from(
    [b'{"a": ', b'"text"', b", ", b"}", b"[", b"]", b"\n", b'"', b"\r", b"\t", b"\\ud800", b"1",
     b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"NaN", b'"a": 1', "é\u2028".encode(), b"PAR1"]),
    max_size=12).map(b"".join)


@SEEDED
@given(data=st.binary(max_size=40) | FRAGMENTS,
       suffix=st.sampled_from([*WRITERS, ".txt", ".md"]))
@example(data=b'a"\r"\r\n', suffix=".csv")
def test_any_bytes_are_records_or_one_line_that_says_what_is_wrong(data, suffix):
    try:
        rows = rows_of(f"task{suffix}", data)
    except UserError as error:
        assert str(error).startswith(f"task{suffix}") and len(str(error).splitlines()) == 1
    else:
        assert rows and json.dumps([row for _, row in rows], ensure_ascii=False).encode()


@SEEDED
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_damaged_parquet_is_records_or_one_line_that_says_what_is_wrong(place, byte):
    data = bytearray(as_parquet(ROWS))
    data[place % len(data)] = byte
    try:
        rows_of("task.parquet", bytes(data))
    except UserError as error:
        assert str(error).startswith("task.parquet") and len(str(error).splitlines()) == 1
