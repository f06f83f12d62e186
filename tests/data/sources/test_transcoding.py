"""Text in other encodings: read as what it says, and bad where the encoding lacks its bytes."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preparation import prepare
from data.sources import streams
from data.sources import text as text_module
from data.sources.bad_text import BadText
from data.sources.streams import Meter
from data.sources.text import first_problem, read_text
from data.sources.transcoding import Transcoded
from tests.data.corpora import everything, folder_bytes, recipe
from tests.data.sources.sample_files import PACKERS, file_of, read, refusal, write
from tests.data.sources.test_records import as_csv

SEEDED = settings(max_examples=60, derandomize=True, database=None, deadline=None)
WESTERN = "Ein Häuschen, 5 \u20ac, \u201eso\u201c na\xefve\n"
SAMPLES = {"iso8859-1": "d\xe9j\xe0 vu\xa0\xff\n", "cp1252": WESTERN, "iso8859-15": "5 \u20ac\n",
           "utf-16": WESTERN + "中文🙂", "utf-16-be": WESTERN + "中🙂", "utf-32": "中🙂é",
           "gb18030": "中文没有空格。𠀀é\n", "shift_jis": "日本語のテキスト\n",
           "euc_kr": "한국어\n", "koi8-r": "Привет, мир\n", "cp1251": "Привет\n", "big5": "中文\n",
           "cp037": "in EBCDIC\n", "ascii": "plain\n", "iso2022_jp": "日本語 and ASCII\n"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("size", [1, 3, 1 << 17])
@pytest.mark.parametrize("encoding", SAMPLES)
def test_text_in_any_encoding_is_read_as_what_it_says(encoding, size, monkeypatch):
    monkeypatch.setattr("data.sources.transcoding._BLOCK_BYTES", size)
    text = SAMPLES[encoding] * 50
    for policy in ("error", "replace", "skip"):
        for packing in ("", ".gz", ".zst"):
            bad_text = BadText(policy)
            file = file_of(f"a.txt{packing}", PACKERS[packing](text.encode(encoding)),
                           encoding=encoding)
            assert read(file, bad_text) == [text] and not bad_text.tally.counts


@pytest.mark.parametrize("encoding", ["iso8859-1", "cp1252", "utf-16", "gb18030"])
def test_records_may_be_in_any_encoding(encoding):
    texts = ["caf\xe9, \xfcber", 'say "na\xefve"', "last"]
    for name, content in (
            ("a.jsonl", "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)),
            ("a.json", json.dumps([{"text": t} for t in texts], ensure_ascii=False)),
            ("a.csv", as_csv(texts).decode())):
        assert read(file_of(name, content.encode(encoding), encoding=encoding)) == texts


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030",
                                      "utf-8"])
def test_a_byte_order_mark_is_no_text_in_any_encoding_that_has_one(encoding):
    text = "hi\n中"
    assert read(file_of("a.txt", ("\ufeff" + text).encode(encoding), encoding=encoding)) == [text]


BAD = [("cp1252", b"fine\n\x81 and\n", "fine\n\ufffd and\n", 2),
       ("ascii", b"fine\ncaf\xe9\n", "fine\ncaf\ufffd\n", 2),
       ("gb18030", b"fine\n\xffx\n", "fine\n\ufffdx\n", 2),
       ("shift_jis", "日本\n".encode("shift_jis") + b"\x82", "日本\n\ufffd", 2),
       ("utf-16-le", "ab\n".encode("utf-16-le") + b"\x00\xd8a\0", "ab\n\ufffda", 2),
       ("utf-16", "ab\nc".encode("utf-16") + b"x", "ab\nc\ufffd", 2)]


@pytest.mark.parametrize("size", [1, 1 << 17])
@pytest.mark.parametrize(("encoding", "data", "mended", "line"), BAD)
def test_bytes_that_an_encoding_lacks_are_bad_text(encoding, data, mended, line, size, monkeypatch):
    monkeypatch.setattr("data.sources.transcoding._BLOCK_BYTES", size)
    file = file_of("a.txt", data, encoding=encoding)
    assert refusal(read, file) == (
        f"a.txt, line {line}: the text is not {encoding}; mend the file, or set "
        "on_bad_text=replace or on_bad_text=skip")
    skip, replace = BadText("skip"), BadText("replace")
    assert read(file, skip) == [""] and skip.tally.counts == {"skipped": 1}
    assert read(file, replace) == [mended] and replace.tally.counts == {"replaced": 1}
    assert replace.tally.incidents[0].problem == f"the text is not {encoding}"


def test_a_record_with_bytes_that_its_encoding_lacks_is_bad_and_the_others_stay():
    for name, data in (("a.jsonl", b'{"text": "\xe9"}\n{"text": "b\x81"}\n{"text": "c"}\n'),
                       ("a.json", b'[{"text": "\xe9"},\n{"text": "b\x81"}, {"text": "c"}]'),
                       ("a.csv", b"text\n\xe9\nb\x81\nc\n")):
        file = file_of(name, data, encoding="cp1252")
        assert ": the text is not cp1252; mend" in refusal(read, file)
        bad_text = BadText("skip")
        assert read(file, bad_text) == ["é", "c"] and bad_text.tally.counts == {"skipped": 1}
        assert read(file, BadText("replace")) == ["é", "b\ufffd", "c"]


@SEEDED
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=40),
       encoding=st.sampled_from(["utf-16-le", "utf-32-be", "gb18030"]), size=st.integers(1, 9))
def test_any_text_comes_back_in_blocks_of_any_size(text, encoding, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.sources.transcoding._BLOCK_BYTES", size)
        assert Transcoded(io.BytesIO(text.encode(encoding)), encoding).read() == text.encode()


def test_a_packed_text_that_breaks_off_goes_by_the_policy_in_any_encoding():
    lines = "".join(f"l\xefne {i * 7919 % 10007}\n" for i in range(20_000))
    packed = PACKERS[".gz"](lines.encode("latin-1"))
    file = file_of("a.txt.gz", packed[:len(packed) * 3 // 4], encoding="latin-1")
    assert "the file breaks off or is damaged" in refusal(read, file)
    bad_text = BadText("replace")
    [found] = read(file, bad_text)
    assert found and lines.startswith(found) and bad_text.tally.counts == {"replaced": 1}


def test_a_long_text_takes_no_more_memory_in_another_encoding(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 1 << 14)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 14)
    file = file_of("long.txt", ("w\xf6rd " * (1 << 18)).encode("utf-16"), encoding="utf-16")
    assert first_problem(file) is None
    tracemalloc.start()
    count = sum(len(piece) for piece in read_text(file, BadText("error"), Meter()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5 << 18 and peak < 2 << 20


def test_a_dataset_from_another_encoding_is_that_of_the_same_text_in_utf_8():
    text = WESTERN * 60
    for folder, encoding in (("plain", "utf-8"), ("other", "cp1252"), ("wide", "utf-16")):
        for i in range(12):
            write(f"{folder}/{i}.txt", (text + str(i)).encode(encoding))
        write(f"{folder}-one.txt", text.encode(encoding))
    for source in ("", "-one.txt"):
        made = {folder: prepare(recipe(sources=[f"{folder}{source}"], tokenizer="bpe:280",
                                       out=f"out-{folder}{source}", encoding=encoding))
                for folder, encoding in (("plain", "utf-8"), ("other", "cp1252"),
                                         ("wide", "utf-16"))}
        assert everything(made["plain"])
        for folder in ("other", "wide"):
            theirs, ours = folder_bytes(f"out-plain{source}"), folder_bytes(f"out-{folder}{source}")
            assert {name for name in ours if ours[name] != theirs[name]} == {"dataset.json"}
