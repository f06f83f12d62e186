"""Files of records: every format, the field that is their text, and records that are none."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.sources import records
from data.sources.bad_text import BadText, Incident
from data.sources.files import File
from data.sources.records import TextField, bounded_lines
from tests.data.sources.sample_files import PACKERS, file_of, files_of, read, refusal, write

TEXTS = ["one\ntwo", "", "é 中 🙂", 'say "hi", twice\r\n\tend', "nul \0", " ", "last"]
POLICIES = ["error", "replace", "skip"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def as_jsonl(texts: list[str]) -> bytes:
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    return "\n".join([*lines[:2], "  ", *lines[2:]]).encode()


def as_json(texts: list[str]) -> bytes:
    return json.dumps([{"text": text} for text in texts], indent=1, ensure_ascii=False).encode()


def as_objects(texts: list[str]) -> bytes:
    return "\n".join(json.dumps({"text": text}, indent=2) for text in texts).encode()


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    return file.getvalue().encode()


def as_parquet(texts: list[Any], **fields: Any) -> bytes:
    sink = io.BytesIO()
    columns = {"id": list(range(len(texts))), "text": texts} | fields
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, row_group_size=3)
    return sink.getvalue()


FORMATS = {".jsonl": as_jsonl, ".ndjson": as_jsonl, ".json": as_json, ".csv": as_csv,
           ".tsv": lambda texts: as_csv(texts, "\t"), ".parquet": as_parquet}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_its_texts_whatever_it_is_packed_in(suffix, packing):
    data = PACKERS[packing](FORMATS[suffix](TEXTS))
    for policy in POLICIES:
        bad_text = BadText(policy)
        assert read(file_of(f"a{suffix}{packing}", data), bad_text) == TEXTS
        assert not bad_text.tally.counts


@pytest.mark.parametrize(("form", "make"), [
    ("jsonl", as_jsonl), ("json", as_objects), ("json", as_json), ("csv", as_csv),
    ("parquet", as_parquet)])
def test_a_format_that_is_named_counts_more_than_the_ending(form, make):
    assert read(file_of("a.data.gz", PACKERS[".gz"](make(TEXTS)), format=form)) == TEXTS
    assert len(read(file_of("a.jsonl", as_jsonl(TEXTS), format="text"))) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_a_record(suffix):
    assert read(file_of(f"a{suffix}", b"\xef\xbb\xbf" + FORMATS[suffix](["a"]))) == ["a"]
    assert read(file_of("a.csv", "\ufefftext\na\n")) == ["a"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_records_has_no_texts(suffix):
    assert read(file_of(f"a{suffix}", FORMATS[suffix]([]))) == []
    if suffix != ".parquet":
        assert read(file_of(f"a{suffix}", b"")) == read(file_of(f"a{suffix}", b" \n\r\n")) == []


@pytest.mark.parametrize("packing", ["", ".zst"])
def test_records_are_read_in_place_behind_an_address(packing):
    import fsspec
    memory = fsspec.filesystem("memory")
    for suffix, make in FORMATS.items():
        with memory.open(f"/records/a{suffix}{packing}", "wb") as stream:
            stream.write(PACKERS[packing](make(TEXTS)))
        [file] = files_of(f"memory://records/a{suffix}{packing}")
        assert read(file) == TEXTS


# Which field


RECORD = {"title": "T", "body": "B", "n": 3, "x": 1.5, "yes": True, "null": None, "list": ["a"],
          "meta": {"text": "inside", "deep": {"er": "deeper"}}, "a.b": "dotted"}


@pytest.mark.parametrize(("spec", "text"), [
    ("title", "T"), ("meta.text", "inside"), ("meta.deep.er", "deeper"), ("a.b", "dotted"),
    ("{title}: {body}", "T: B"), ("{title}\n\n{meta.text}{title}", "T\n\ninsideT"),
    ("#{n} {x} {yes}", "#3 1.5 True"), ("{{title}}", "{T}")])
def test_a_record_s_text_is_a_field_or_a_template(spec, text):
    assert TextField(spec).of(RECORD) == text


@pytest.mark.parametrize(("spec", "problem"), [
    ("n", "its field 'n' is a number, not text"), ("x", "its field 'x' is a number, not text"),
    ("yes", "its field 'yes' is true or false, not text"), ("null", "its field 'null' is null"),
    ("list", "its field 'list' is a list, not text"), ("meta", "its field 'meta' is an object"),
    ("{list}", "its field 'list' is a list"), ("{null} {title}", "its field 'null' is null"),
    ("text", "it has no field 'text' (its fields: title, body, n, x, yes, null, list, meta); name "
             "the right one with text_field=, or take the file as plain text with format=text"),
    ("meta.body", "it has no field 'body' (its fields: text, deep)"),
    ("{title", "it has no field '{title'"),
    ("title.x", "it has no field 'title.x'"), ("{nope}{title}", "it has no field 'nope'")])
def test_a_record_without_text_says_what_it_has(spec, problem):
    with pytest.raises(ValueError) as caught:
        TextField(spec).of(RECORD)
    assert problem in str(caught.value)


@pytest.mark.parametrize(("record", "kind"), [
    ([], "a list"), ("a", "text"), (3, "a number"), (None, "null"), (True, "true or false")])
def test_a_record_that_is_no_object_is_called_what_it_is(record, kind):
    with pytest.raises(ValueError, match=rf"^a record is an object with fields, not {kind}$"):
        TextField("text").of(record)


def test_a_value_is_never_taken_for_a_template():
    assert TextField("{a}").of({"a": "{b} \\1 {a}"}) == "{b} \\1 {a}"


def test_field_names_that_are_very_long_are_not_told_at_length():
    with pytest.raises(ValueError) as caught:
        TextField("text").of({"x" * 10_000: 1})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("spec", "found"), [
    ("meta.text", ["a", "b"]), ("{id}: {meta.text}", ["0: a", "1: b"]), ("raw", ["é", "f"]),
    ("a.b", ["dotted", "too"]), ("large", ["l", "m"]), ("word", ["w", "w"])])
def test_parquet_columns_may_be_nested_binary_or_dotted(spec, found):
    table = {"meta": [{"text": "a"}, {"text": "b"}], "raw": ["é".encode(), b"f"],
             "a.b": ["dotted", "too"], "large": pyarrow.array(["l", "m"], pyarrow.large_string()),
             "word": pyarrow.array(["w", "w"]).dictionary_encode()}
    assert read(file_of("a.parquet", as_parquet([1, 2], **table), text_field=spec)) == found


def test_only_the_columns_that_are_asked_for_are_read(monkeypatch):
    asked = []
    batches = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", lambda self, **fields: (
        asked.append(fields["columns"]) or batches(self, **fields)))
    read(file_of("a.parquet", as_parquet(["x"], other=["y"]), text_field="{text} {id}"))
    assert asked == [["id", "text"]]


def test_a_parquet_file_without_the_column_is_refused_with_those_it_has():
    file = file_of("a.parquet", as_parquet(["x"]), text_field="body")
    for policy in POLICIES:
        assert refusal(read, file, BadText(policy)) == (
            "a.parquet has no column 'body'; it has id, text: name one with text_field=")


# Bad records


LINE = b'{"text": "%s"}\n'


def lines(*texts: bytes) -> bytes:
    return b"".join(text if text.startswith(b"\0") else LINE % text for text in texts)


def rows(*texts: bytes) -> bytes:
    return b"text,id\n" + b"".join(b"%s,1\n" % text for text in texts)


# (file, content, line, problem, what `replace` makes of the record: None if it is left out)
BAD: list[tuple[str, bytes, int, str, str | None]] = [
    ("a.jsonl", lines(b"a", b"b\xff", b"c"), 2, "the text is not UTF-8 (invalid start byte)",
     "b\ufffd"),
    ("a.jsonl", lines(b"a", b"\\ud800x", b"c"), 2,
     "half a surrogate pair (\\ud800) stands alone", "\ufffdx"),
    ("a.jsonl", lines(b"a", b"\\udcffx", b"c"), 2,
     "half a surrogate pair (\\udcff) stands alone", "\ufffdx"),
    ("a.jsonl", lines(b"a", b"\xff\\ud800x", b"c"), 2, "the text is not UTF-8", "\ufffd\ufffdx"),
    ("a.jsonl", lines(b"a") + b'{"text" "b"}\n' + lines(b"c"), 2, "it is not valid JSON", None),
    ("a.jsonl", lines(b"a") + b"\xbf\n" + lines(b"c"), 2, "the text is not UTF-8", None),
    ("a.jsonl", lines(b"a") + b"\0\0\n" + lines(b"c"), 2, "it is not valid JSON", None),
    ("a.jsonl", lines(b"a") + b"[" * 100_000 + b"\n" + lines(b"c"), 2, "not valid JSON", None),
    ("a.jsonl", lines(b"a") + b'{"text": ' + b"9" * 5000 + b"}\n" + lines(b"c"), 2, "JSON", None),
    ("a.jsonl", lines(b"a") + b'{"text": null}\n' + lines(b"c"), 2, "'text' is null", None),
    ("a.jsonl", lines(b"a") + b'{"body": "b"}\n' + lines(b"c"), 2, "no field 'text'", None),
    ("a.jsonl", lines(b"a") + b"{}\n" + lines(b"c"), 2, "(its fields: none)", None),
    ("a.jsonl", lines(b"a") + b'"b"\n' + lines(b"c"), 2, "a record is an object", None),
    ("a.json", b'[{"text": "a"},\n {"text": "b\xff\xe4\xbd"},\n {"text": "c"}]', 2,
     "the text is not UTF-8", "b\ufffd\ufffd"),
    ("a.json", b'{"text": "a"}\n{"text": "\\ud800"} {"text": "c"}', 2, "half a surrogate pair",
     "\ufffd"),
    ("a.json", b'[{"text": "a"},\n{"text": ["b"]}, {"text": "c"}]', 2, "a list, not text", None),
    ("a.json", b'[{"text": "a"},\n["b"], {"text": "c"}]', 2, "an object with fields", None),
    ("a.csv", rows(b"a", b"b\xff", b"c"), 3, "the text is not UTF-8", "b\ufffd"),
    ("a.csv", rows(b"a", b'"b\n\xff"', b"c"), 4, "the text is not UTF-8", "b\n\ufffd"),
    ("a.csv", rows(b"a", b"b, and more", b"c"), 3, "it has 3 cells, and the columns are 2", None),
    ("a.csv", b"id,text\n1,a\n2\n3,c\n", 3, "'text' is null, not text", None),
    ("a.csv", rows(b"a", b'"' + b"b" * 3000 + b'"', b"c"), 3, "the line is longer than", None),
    ("a.parquet", as_parquet(["a", None, "c"]), 2, "'text' is null", None),
    ("a.parquet", as_parquet([b"a", b"b\xff", b"c"]), 2, "the text of 'text' is not UTF-8",
     "b\ufffd"),
]


@pytest.fixture
def small_records(monkeypatch):
    monkeypatch.setattr(records, "RECORD_BYTES", 2048)


@pytest.mark.parametrize(("name", "data", "line", "problem", "mended"), BAD)
def test_a_bad_record_is_refused_mended_or_left_out_and_the_others_stay(
        name, data, line, problem, mended, request):
    if "longer" in problem:
        request.getfixturevalue("small_records")
    file = file_of(name, data)
    told = refusal(read, file)
    assert told.startswith(f"{name}, line {line}: ") and problem in told
    assert told.endswith("; mend the file, or set on_bad_text=replace or on_bad_text=skip")
    skip, replace = BadText("skip"), BadText("replace")
    assert read(file, skip) == ["a", "c"] and skip.tally.counts == {"skipped": 1}
    assert skip.tally.incidents[0].line == line
    assert read(file, replace) == (["a", "c"] if mended is None else ["a", mended, "c"])
    assert replace.tally.counts == {"skipped" if mended is None else "replaced": 1}


# (file, content, line, problem): nothing after that place can be read
TORN: list[tuple[str, bytes, int, str]] = [
    ("a.json", b'[{"text": "a"},\n{"text": "b"},\n{"text" "c"}]', 3, "it is not valid JSON"),
    ("a.json", b'[{"text": "a"}, {"text": "b"},\n{"text": "c', 2, "it is not valid JSON"),
    ("a.json", b'[{"text": "a"}, {"text": "b"}', 1, "it is not valid JSON"),
    ("a.json", b'{"text": "a"} {"text": "b"} ' + b"[" * 100_000, 1, "nested too deeply"),
    ("a.parquet", as_parquet(["a", "b"])[:-1], 1, "it is no sound parquet file"),
    ("a.parquet", as_parquet(["a", "b"])[:200], 1, "it is no sound parquet file"),
    ("a.parquet", b"", 1, "it is no sound parquet file"),
    ("a.parquet", b"PAR1 is how it begins PAR1", 1, "it is no sound parquet file"),
    ("a.json", '[{"text": "a"}]'.encode("utf-16"), 1, "UTF-16: set encoding=utf-16"),
]


@pytest.mark.parametrize(("name", "data", "line", "problem"), TORN)
def test_a_file_that_cannot_be_read_on_is_one_case_of_bad_text(name, data, line, problem):
    file = file_of(name, data)
    told = refusal(read, file)
    assert told.startswith(f"{name}, line {line}: ") and problem in told
    for policy in ("replace", "skip"):
        bad_text = BadText(policy)
        expected = ["a", "b"] if b'"a"' in data else []
        assert read(file, bad_text) == expected
        assert bad_text.tally.counts == {"skipped": 1}
        assert bad_text.tally.incidents[0].line == line


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_packed_file_of_records_that_breaks_off_is_bad_text(suffix, packing):
    texts = [f"text {i * 7919 % 10007}" for i in range(3000)]
    packed = PACKERS[packing](FORMATS[suffix](texts))
    file = file_of(f"a{suffix}{packing}", packed[:len(packed) * 3 // 4])
    assert "the file breaks off or is damaged" in refusal(read, file)
    bad_text = BadText("skip")
    found = read(file, bad_text)
    assert found == texts[:len(found)] and bad_text.tally.counts == {"skipped": 1}
    assert found or packing == ".bz2" or suffix == ".parquet"


def test_a_cell_in_quotes_that_never_ends_is_no_text():
    data = b'text\n"a"\n"b\nand the rest\n'
    assert "line 4: a cell in quotes does not end" in refusal(read, file_of("a.csv", data))
    bad_text = BadText("skip")
    assert read(file_of("a.csv", data), bad_text) == ["a"]
    assert bad_text.tally.counts == {"skipped": 1}
    assert read(file_of("a.csv", data + b'"')) == ["a", "b\nand the rest\n"]
    assert read(file_of("a.csv", b'text\n"a"\n"b"')) == ["a", "b"]


def test_a_cell_that_is_too_long_ends_its_file_for_where_it_ends_is_not_known(small_records):
    data = rows(b"a", b'"' + b"b\n" * 1500 + b'"', b"c")
    assert "a.csv, line 3: it is not valid CSV (field larger" in refusal(read, file_of("a.csv",
                                                                                      data))
    bad_text = BadText("skip")
    assert read(file_of("a.csv", data), bad_text) == ["a"]
    assert bad_text.tally.counts == {"skipped": 1}


def test_a_carriage_return_inside_a_line_spoils_that_line_alone():
    bad_text = BadText("skip")
    assert read(file_of("a.csv", rows(b"a", b"b\rb", b"c")), bad_text) == ["a", "c"]
    assert bad_text.tally.incidents[0].line == 3


@pytest.mark.parametrize("data", [b"te\xffxt\na\n", b'"text\na\n', b"x" * 3000 + b"\na\n"])
def test_columns_whose_names_cannot_be_read_make_no_csv(data, small_records):
    assert "in the names of the columns, " in refusal(read, file_of("a.csv", data))
    for policy in ("skip", "replace"):
        bad_text = BadText(policy)
        assert read(file_of("a.csv", data), bad_text) == []
        assert bad_text.tally.counts == {"skipped": 1}


@pytest.mark.parametrize("data", [b"\n\ntext,id\na,1\n\n\nb,2,\n", b"text,id\r\na,1\r\nb\r\n"])
def test_csv_may_have_blank_lines_and_empty_cells(data):
    assert read(file_of("a.csv", data)) == ["a", "b"]


def test_a_csv_without_the_column_says_which_it_has():
    assert "it has no field 'text' (its fields: title, body)" in refusal(
        read, file_of("a.csv", b"title,body\na,b\n"))


def test_a_line_longer_than_a_record_may_be_is_bad_text_and_never_in_memory(small_records):
    data = b"".join([LINE % b"a", LINE % (b"x" * 10_000), LINE % b"b"])
    file = file_of("a.jsonl", data)
    assert refusal(read, file).startswith("a.jsonl, line 2: the line is longer than ")
    bad_text = BadText("replace")
    assert read(file, bad_text) == ["a", "b"]
    assert bad_text.tally.counts == {"skipped": 1}
    assert [line and len(line) for line in bounded_lines(io.BytesIO(data))] == [14, None, 14]
    assert [line and len(line) for line in bounded_lines(io.BytesIO(b"x" * 5000))] == [None]


def test_a_line_as_long_as_a_record_may_be_is_read(small_records):
    text = "x" * (2048 - len('{"text": ""}\n'))
    assert read(file_of("a.jsonl", LINE % text.encode())) == [text]


def test_a_record_of_json_is_bounded_like_a_line(small_records):
    data = b'[{"text": "a"}, {"text": "' + b"x" * (3 << 20) + b'"}]'
    assert "a record is longer than" in refusal(read, file_of("a.json", data))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_parquet_text_that_is_not_utf_8_is_bad_and_the_others_of_its_batch_stay(kind):
    texts = pyarrow.array([b"a", b"b\xff", "é".encode()], pyarrow.binary()).cast(
        pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary())
    wrong = pyarrow.Array.from_buffers(kind, 3, texts.buffers())
    for column, spec in ((wrong, "text"), (wrong.dictionary_encode(), "text"),
                         (pyarrow.StructArray.from_arrays([wrong], ["in"]), "text.in")):
        file = file_of("a.parquet", as_parquet(column), text_field=spec)
        assert refusal(read, file).startswith("a.parquet, line 2: ")
        bad_text = BadText("skip")
        assert read(file, bad_text) == ["a", "é"]
        assert bad_text.tally.counts == {"skipped": 1}
        replaced = read(file, BadText("replace"))
        assert replaced == (["a", "é"] if spec == "text.in" else ["a", "b\ufffd", "é"])


def test_a_parquet_date_that_python_does_not_have_is_a_bad_record():
    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    file = file_of("a.parquet", as_parquet(["a", "b"], when=dates), text_field="{text} {when}")
    assert "line 2: it cannot be read (" in refusal(read, file)
    assert read(file, BadText("skip")) == ["a 1970-01-01 00:00:00"]


def test_incidents_name_the_file_line_problem_and_what_was_done():
    bad_text = BadText("replace")
    read(file_of("a.jsonl", lines(b"b\xff") + b"x\n"), bad_text)
    assert bad_text.tally.incidents == [
        Incident("a.jsonl", 1, "the text is not UTF-8 (invalid start byte)", "replaced"),
        Incident("a.jsonl", 2, "it is not valid JSON (Expecting value)", "skipped")]
    assert bad_text.tally.counts == {"replaced": 1, "skipped": 1}


# Data sets of the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local folder in the place of a data set; the network is off, also for libraries that
    another test has imported already."""
    import datasets
    import huggingface_hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write("set/train.jsonl", as_jsonl(["a", "b"]))
    write("set/test.jsonl", as_jsonl(["c"]))


def test_a_data_set_is_streamed_split_by_split(hub):
    [file] = files_of("set", format="datasets")
    assert read(file) == ["a", "b"]
    [file] = files_of("set", format="datasets", subset_split="test", text_field="{id} {text}")
    assert read(file) == ["0 c"]


@pytest.mark.parametrize("fields", [{"path": "owner/none"}, {"subset_split": "none"},
                                    {"subset": "none"}, {"path": "none/at/all"}])
def test_a_data_set_that_cannot_be_read_is_one_line(fields, hub):
    [file] = files_of(fields.pop("path", "set"), format="datasets", **fields)
    told = refusal(read, file)
    assert told.startswith(f"the Hugging Face dataset {file.path} cannot be read: ")
    assert told.endswith("without a network, name the folder that its files lie in as the source")


def test_whatever_the_library_of_data_sets_raises_is_one_line(monkeypatch):
    import datasets

    class OwnError(Exception):
        pass

    def stream(*args, **fields):
        yield {"text": "a"}
        raise OwnError("of\nits own")

    monkeypatch.setattr(datasets, "load_dataset", stream)
    [file] = files_of("set", format="datasets")
    assert "cannot be read: OwnError: of its own; without" in refusal(read, file)


@pytest.mark.parametrize(("name", "library"), [
    ("a.parquet", "pyarrow"), ("set", "datasets")])
def test_a_missing_library_is_named(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    file = File(name, name, None, "parquet" if name != "set" else "datasets", None, 0, "text")
    assert refusal(read, file) == (f"reading {name} needs the package {library}: "
                                   "pip install 'gpt-toolkit[data]'")


def test_what_needs_no_library_needs_none(monkeypatch):
    for library in ("pyarrow", "datasets", "fsspec", "zstandard", "ijson"):
        monkeypatch.setitem(sys.modules, library, None)
    for suffix, make in FORMATS.items():
        if suffix != ".parquet":
            assert read(file_of(f"a{suffix}.gz", PACKERS[".gz"](make(TEXTS)))) == TEXTS


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_of_a_csv_file_are_separated_by_what_its_header_shows(separator):
    lines = [["id", "text"], ["1", "a; b, c"], ["2", "two\nlines"]]
    quoted = "\r\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines)
    plain = separator.join(["id", "text"]) + f"\n7{separator}plain\n"
    assert read(file_of("a.csv", quoted)) == ["a; b, c", "two\nlines"]
    assert read(file_of("b.csv", plain)) == ["plain"]
