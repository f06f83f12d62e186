"""What is no text though its name says so, and text that is never taken for anything else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import sqlite3
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.preparation import prepare
from data.sources.bad_text import BadText
from data.sources.kinds import why_no_text
from tests.data.corpora import everything, prose, recipe
from tests.data.sources.sample_files import PACKERS, file_of, read, refusal, zstandard
from tests.data.sources.test_records import as_csv, as_json, as_jsonl, as_parquet


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        header = tarfile.TarInfo("a.txt")
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def array(dtype: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(2000).astype(dtype))
    return file.getvalue()


def database() -> bytes:
    with sqlite3.connect("a.db") as file:
        file.execute("CREATE TABLE a (b TEXT)")
    return Path("a.db").read_bytes()


NOISE = random.Random(0).randbytes(20_000)
TEXT = prose(3000, 1).encode()
OFFICE = "a zip archive or an office file (.docx, .xlsx, .odt)"
FILES = {
    "PDF": (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF file"),
    "docx": (zipped("word/document.xml", TEXT), OFFICE),
    "no zip entries": (b"PK\x05\x06" + bytes(18), OFFICE),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an office file (.doc, .xls, .ppt)"),
    "gzip": (gzip.compress(TEXT), "a gzip file whose name lacks .gz"),
    "bzip2": (bz2.compress(TEXT), "a bzip2 file whose name lacks .bz2"),
    "xz": (lzma.compress(TEXT), "an xz file whose name lacks .xz"),
    "zstd": (zstandard.compress(TEXT), "a Zstandard file whose name lacks .zst"),
    "tar": (tarred(TEXT), "a tar archive whose name lacks .tar"),
    "parquet": (as_parquet(["a"]), "a parquet file whose name lacks .parquet"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
    "GIF": (b"GIF89a\x01\0\x01\0\x80\0\0", "a GIF image"),
    "program": (Path(sys.executable).resolve().read_bytes()[:70_000], "a program"),
    "NumPy": (array("float64"), "a NumPy array"),
    "noise": (NOISE, "binary data"), "zeros": (bytes(5000), "binary data"),
    "numbers": (array("int32")[128:], "binary data")}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_text_is_one_line_or_left_out_whatever_it_is_packed_in(kind):
    data, said = FILES[kind]
    for packing in ("", ".gz"):
        file = file_of(f"a.txt{packing}", PACKERS[packing](data))
        told = refusal(read, file)
        assert told.startswith(f"a.txt{packing}, line 1: it is {said}, not text")
        assert told.endswith("; mend the file, or set on_bad_text=replace or on_bad_text=skip")
        for policy in ("replace", "skip"):
            bad_text = BadText(policy)
            assert read(file, bad_text) == [""] and bad_text.tally.counts == {"skipped": 1}


def test_a_database_is_no_text():
    assert "it is an SQLite database, not text" in refusal(read, file_of("a.txt", database()))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_records_that_are_something_else_are_one_case_and_not_one_for_each_line(suffix):
    file = file_of(f"a{suffix}", zipped("xl/sheet.xml", TEXT))
    assert f"a{suffix}, line 1: it is {OFFICE}, not text" in refusal(read, file)
    for policy in ("replace", "skip"):
        bad_text = BadText(policy)
        assert read(file, bad_text) == [] and bad_text.tally.counts == {"skipped": 1}


def test_noise_is_no_text_in_any_encoding():
    for encoding in ("utf-8", "iso8859-1", "cp1252", "cp437", "gb18030"):
        assert (why_no_text(NOISE, encoding) or "").startswith("it is binary data")


STRANGE = {
    "NULs": b"a\0b" * 20, "ten NULs": b"\0" * 10, "few NULs": b"a line\n\0" * 5000,
    "form feeds": b"\x0cChapter\n" * 300, "ANSI": b"\x1b[1;31mred\x1b[0m \x07\n" * 2000,
    "overstruck": b"N\x08NA\x08AM\x08ME\x08E\n" * 2000, "DOS": b"text\r\n" * 900 + b"\x1a",
    "FIX": b"8=FIX.4.4\x019=12\x0135=D\x0149=A\x01\n" * 900, "Hive": b"12\x01word\x02x\n" * 900,
    "MARC": b"00714cam\x1e\x1faTitle\x1fbby\x1e\x1d" * 900,
    "all once": bytes(range(128)) * 9 + b"plain text that goes on\n" * 3000,
    "GIF8 in words": b"GIF89a is a format\n", "BZh in words": b"BZh91 is how it begins\n",
    "PAR1 in words": b"PAR1: a heading\n" * 50, "ustar in words": b"x" * 257 + b"ustar" + b"y" * 99,
    "of every script": TEXT, "of no ASCII": "中文。".encode() * 4000, "cut": "中".encode() * 30_000}


@pytest.mark.parametrize("name", STRANGE)
def test_text_is_text_however_strange(name):
    data = STRANGE[name]
    assert read(file_of("a.txt", data)) == [data.decode()]
    for encoding in ("iso8859-1", "cp1252"):
        assert "it is" not in (why_no_text(data, encoding) or "")


def test_latin_1_is_not_binary_but_bad_utf_8():
    data = "caf\xe9 \xe0 la cr\xe8me, \xab na\xefve \xbb\n".encode("latin-1") * 2000
    assert "line 1: the text is not UTF-8 (invalid continuation byte)" in refusal(
        read, file_of("a.txt", data))


@pytest.mark.parametrize(("encoding", "found"), [
    ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"),
    ("utf-32", "utf-32")])
@pytest.mark.parametrize("said", ["utf-8", "cp1252"])
def test_text_in_two_bytes_or_four_is_called_by_the_encoding_to_set(encoding, found, said):
    data = ("A line in English, and another: na\xefve.\n" * 40).encode(encoding)
    told = refusal(read, file_of("a.txt", data, encoding=said))
    assert f": set encoding={found}; " in told and "a.txt, line 1: the text is not " in told
    assert read(file_of("a.txt", data, encoding=found)) == [data.decode(encoding)]


@pytest.mark.parametrize("said", ["utf-16", "utf-16-le", "iso8859-1", "gb18030"])
def test_utf_8_is_not_read_as_something_else_if_that_can_be_seen(said):
    told = refusal(read, file_of("a.txt", "\ufeffé line\n" * 40, encoding=said))
    assert "but UTF-8: set encoding=utf-8" in told
    if said.startswith("utf-16"):
        assert "but UTF-8: set encoding=utf-8" in refusal(
            read, file_of("a.txt", "a line and more\n" * 40, encoding=said))


def test_sound_records_are_never_taken_for_anything_else():
    texts = ["a \0 b", "中", "x\x01y"] * 200
    for suffix, make in ((".jsonl", as_jsonl), (".json", as_json), (".csv", as_csv)):
        assert read(file_of(f"a{suffix}", make(texts))) == texts


def test_files_that_are_no_text_are_counted_and_the_others_prepared():
    for i in range(8):
        file_of(f"c/{i}.txt", prose(30, i))
    file_of("c/report.txt", FILES["PDF"][0])
    file_of("c/blob.md", NOISE)
    assert "c/blob.md, line 1: it is binary data, not text" in refusal(
        prepare, recipe(sources=["c"], tokenizer="byte"))
    for policy in ("replace", "skip"):
        dataset = prepare(recipe(sources=["c"], tokenizer="byte", on_bad_text=policy, out=policy))
        assert dataset.manifest.bad_text == {"skipped": 2}
        assert everything(dataset) == sorted(prose(30, i) for i in range(8))


def test_a_tail_is_cut_by_what_is_text_in_what_is_left():
    file_of("c/a.txt", prose(300, 1))
    file_of("c/b.txt", NOISE)
    dataset = prepare(recipe(sources=["c"], tokenizer="byte", on_bad_text="replace", split="tail"))
    assert len(dataset.train) > 5 * len(dataset.val) > 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("data", ["h\xe9".encode("utf-16-be") * 2, bytes(4), b"\0abc" * 100])
def test_text_that_lacks_the_mark_of_its_encoding_is_refused_with_those_to_set(encoding, data):
    told = refusal(read, file_of("a.txt", data, encoding=encoding))
    assert (f"a.txt, line 1: the text has no byte-order mark, which {encoding.upper()} begins with:"
            f" set encoding={encoding}-le, or {encoding}-be") in told
    assert read(file_of("a.txt", "h\xe9".encode(encoding), encoding=encoding)) == ["h\xe9"]
    assert read(file_of("b.txt", b"", encoding=encoding)) == [""]
