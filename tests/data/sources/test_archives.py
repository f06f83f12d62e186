"""Archives: members are read where they lie, and nothing of them is passed over in silence."""

from __future__ import annotations

import gzip
import io
import json
import random
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest

from data.preparation import prepare
from data.sources import streams, tar
from data.sources.bad_text import BadText
from gpt.errors import WorkFailed
from gpt.shards import Dataset
from tests.data.corpora import documents as split_documents
from tests.data.corpora import everything, prose, recipe, write_jsonl
from tests.data.sources.sample_files import (
    PACKERS,
    corpus_of,
    documents,
    refusal,
    write,
)
from tests.data.sources.test_records import FORMATS

POLICIES = ["error", "replace", "skip"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def packed_tar(packing: str) -> Callable[[dict[str, bytes]], bytes]:
    return lambda files: PACKERS[packing](tar_of(files))


MAKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    ".tar": tar_of, ".tar.gz": packed_tar(".gz"), ".tgz": packed_tar(".gz"),
    ".tar.bz2": packed_tar(".bz2"), ".tbz2": packed_tar(".bz2"), ".tar.xz": packed_tar(".xz"),
    ".txz": packed_tar(".xz"), ".tar.zst": packed_tar(".zst"), ".TAR.GZ": packed_tar(".gz"),
    ".zip": zip_of}
FEW = {"b.txt": b"second letter\n", "a/c.md": "é 中\n".encode(), "empty.txt": b"", "x.py": b"pass"}
TEXTS = ["second letter\n", "é 中\n", "", "pass"]


def texts_of(name: str, data: bytes, bad_text: BadText | None = None, **changes) -> list[str]:
    write(name, data)
    return documents(corpus_of(name, **changes), bad_text)


def names(*paths: str, **changes) -> list[str]:
    corpus = corpus_of(*paths, **changes)
    return [document.name for i in range(len(corpus.files))
            for document in corpus.documents(i, BadText("error"))]


# What is read


@pytest.mark.parametrize("suffix", MAKERS)
def test_members_are_documents_in_the_order_of_the_archive_with_their_paths(suffix):
    data = MAKERS[suffix](FEW)
    for policy in POLICIES:
        bad_text = BadText(policy)
        assert texts_of(f"a{suffix}", data, bad_text) == TEXTS and not bad_text.tally.counts
    assert names(f"a{suffix}") == list(FEW)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_archives_may_be_packed_in_any_way_of_the_library(method):
    assert texts_of("a.zip", zip_of(FEW, method)) == TEXTS


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_archives_may_be_of_any_form_and_their_names_of_any_length(form):
    path = "/".join(["folder" * 3] * 5) + "/a.txt"
    assert texts_of("a.tar", tar_of({path: b"deep"}, form)) == ["deep"]
    assert names("a.tar") == [path]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".parquet"])
def test_records_in_an_archive_are_read_as_records_whatever_they_are_packed_in(suffix, packing):
    member = {f"in/r{suffix}{packing}": PACKERS[packing](FORMATS[suffix](["one\ntwo", "é"]))}
    for archive in (".tar", ".tar.gz", ".zip"):
        for policy in POLICIES:
            assert texts_of(f"a{archive}", MAKERS[archive](member), BadText(policy)) == [
                "one\ntwo", "é"]


def test_a_format_and_an_encoding_of_a_source_are_those_of_the_members():
    files = {"a.txt": '{"text": "caf\xe9"}\n{"text": "b"}'.encode("latin-1")}
    for suffix in (".tar.gz", ".zip"):
        assert texts_of(f"a{suffix}", MAKERS[suffix](files), format="jsonl",
                        encoding="latin-1") == ["caf\xe9", "b"]


def test_parquet_in_an_archive_is_refused_by_name():
    for suffix in (".tar", ".zip"):
        write(f"a{suffix}", MAKERS[suffix]({"t.txt": b"x", "in/p.parquet": b"PAR1"}))
        for policy in POLICIES:
            assert refusal(documents, corpus_of(f"a{suffix}", on_bad_text=policy)) == (
                f"a{suffix}/in/p.parquet: parquet is read from both ends, and a member of an "
                "archive from its start alone; unpack the archive, and name the folder")


def test_archives_are_read_in_folders_by_globs_and_behind_addresses():
    write("c/deep/a.tgz", MAKERS[".tgz"](FEW))
    write("c/b.zip", zip_of({"z.txt": b"zipped"}))
    write("c/t.txt", "plain")
    assert documents(corpus_of("c")) == ["zipped", "plain", *TEXTS]
    assert names("c") == ["b.zip/z.txt", "t.txt", *(f"deep/a.tgz/{name}" for name in FEW)]
    assert names("c/**/*.tgz") == [f"deep/a.tgz/{name}" for name in FEW]
    memory = fsspec.filesystem("memory")
    for name, data in (("a.tar.zst", MAKERS[".tar.zst"](FEW)), ("a.zip", zip_of(FEW)),
                       ("a.tar", tar_of(FEW))):
        with memory.open(f"/archives/{name}", "wb") as stream:
            stream.write(data)
        assert documents(corpus_of(f"memory://archives/{name}")) == TEXTS
        assert names(f"memory://archives/{name}") == list(FEW)


def test_an_archive_behind_an_http_address_is_fetched_and_read(monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MAKERS[".tar.gz"](FEW))

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/data/a.tar.gz?download=1"
        assert documents(corpus_of(url)) == TEXTS and names(url) == list(FEW)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Names


def test_names_are_names_and_nothing_is_written(tmp_path):
    files = {"/etc/a.txt": b"1", "../../b.txt": b"2", "./c.txt": b"3", "d//e.txt": b"4",
             "f/../g.txt": b"5", "same.txt": b"6"}
    for suffix in (".tar.gz", ".tar", ".zip"):
        data = MAKERS[suffix](files)
        before = write(f"in/a{suffix}", data) and sorted(tmp_path.parent.rglob("*"))
        assert documents(corpus_of(f"in/a{suffix}")) == list("123456")
        assert names(f"in/a{suffix}") == ["etc/a.txt", "../../b.txt", "c.txt", "d/e.txt",
                                          "f/../g.txt", "same.txt"]
        assert sorted(tmp_path.parent.rglob("*")) == before


def test_members_of_one_name_are_documents_each():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.txt", "old")
        archive.writestr("a.txt", "new")
    assert texts_of("a.zip", file.getvalue()) == ["old", "new"]
    both = tar_of({"a.txt": b"old"})[:1024] + tar_of({"a.txt": b"new"})
    assert texts_of("a.tar", both) == ["old", "new"]


def test_a_name_that_is_no_utf_8_is_still_a_name():
    data = tar_of({"n\udcff.txt": b"text"}, tarfile.GNU_FORMAT)
    assert texts_of("a.tar", data) == ["text"]
    dataset = prepare(recipe(sources=["a.tar"], tokenizer="byte", split="tail"))
    assert len(dataset.train)


def test_the_split_is_that_of_the_folder_the_archive_was_made_from_wherever_it_lies():
    files = {f"{i % 4}/{i}.txt": prose(20, i).encode() for i in range(30)}
    for name, content in files.items():
        write(f"folder/{name}", content)
    write("one/a.tar.gz", MAKERS[".tar.gz"](files))
    write("two/deeper/b.zip", zip_of(files))
    write("c/t.tar", tar_of(files))
    sources = ["folder", "one/a.tar.gz", str(Path("two/deeper/b.zip").resolve()), "c/t.tar"]
    held_out = [sorted(split_documents(prepare(recipe(
        sources=[source], tokenizer="byte", val_fraction=0.3, out=f"out{i}")), "val"))
        for i, source in enumerate(sources)]
    assert held_out[0] and all(each == held_out[0] for each in held_out)
    inside = prepare(recipe(sources=["c"], tokenizer="byte", val_fraction=0.3, out="inside"))
    assert sorted(split_documents(inside, "val")) != held_out[0]  # named as files in folders are


# What is left out


def strange_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.txt", tarfile.SYMTYPE),
                           ("h.txt", tarfile.LNKTYPE), ("f.txt", tarfile.FIFOTYPE),
                           ("c.txt", tarfile.CHRTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        for name in ("a.txt", ".git/x.txt", "d/.h.txt", "__pycache__/y.py", "p.png", "README",
                     "in.zip", "in.tar", "in.tgz", "in.tar.gz", "._a.txt"):
            header = tarfile.TarInfo(name)
            header.size = 3
            archive.addfile(header, io.BytesIO(b"yes"))
    return file.getvalue()


def test_what_an_archive_holds_besides_is_said_once_in_a_line(capsys):
    write("a.tar", strange_tar())
    corpus = corpus_of("a.tar")
    for _ in range(2):
        assert documents(corpus) == ["yes"]
    assert capsys.readouterr().err == (
        "note: 10 files in a.tar have no known suffix and are left out (2 link, 2 device, 1 .png, "
        "1 without suffix, 1 .zip, …); unpack it, and a glob takes any\n")


def test_links_and_devices_in_a_zip_archive_are_left_out(capsys):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "yes")
        archive.mkdir("d.txt") if hasattr(archive, "mkdir") else archive.writestr("d.txt/", "")
        for name, kind in (("l.txt", stat.S_IFLNK), ("f.txt", stat.S_IFIFO)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, "/etc/passwd")
    assert texts_of("a.zip", file.getvalue()) == ["yes"]
    assert "note: 2 files in a.zip have no known suffix and are left out (1 link, 1 device)" in (
        capsys.readouterr().err)


def test_a_member_without_a_name_is_left_out(capsys):
    data = zip_of({"a.txt": b"yes", "\1bc.txt": b"no"}).replace(b"\1bc.txt", b"\0bc.txt")
    assert texts_of("a.zip", data) == ["yes"]
    assert "note: 1 files in a.zip have no known suffix and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_without_text_is_one_line_if_it_is_all_there_is(suffix):
    for files in ({}, {"a.png": b"x", ".git/a.txt": b"y"}):
        write(f"a{suffix}", MAKERS[suffix](files))
        assert refusal(prepare, recipe(sources=[f"a{suffix}"], tokenizer="byte")) == (
            f"the source a{suffix} has no text: the archive has no sound members with a known "
            "suffix (.c, .cpp, .go, .h, .html, .java, …); unpack it, and name files or a glob "
            "such as 'corpus/*.log' instead")
        write(f"c/a{suffix}", MAKERS[suffix](files))
        write("c/t.txt", prose(90, 1))
        assert documents(corpus_of("c")) == [prose(90, 1)]


def test_an_encrypted_member_goes_by_the_policy():
    data = bytearray(zip_of({"a.txt": b"secret", "b.txt": b"open"}))
    for place in (6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1
    file = write("a.zip", bytes(data))
    assert refusal(documents, corpus_of(str(file))) == (
        "a.zip/a.txt, line 1: it is encrypted; mend the file, or set on_bad_text=replace or "
        "on_bad_text=skip")
    for policy in ("replace", "skip"):
        bad_text = BadText(policy)
        assert documents(corpus_of("a.zip"), bad_text) == ["open"]
        assert bad_text.tally.counts == {"skipped": 1}


def test_a_member_packed_in_a_way_that_nobody_knows_goes_by_the_policy():
    data = bytearray(zip_of({"a.txt": b"odd", "b.txt": b"open"}))
    for place in (8, data.find(b"PK\x01\x02") + 10):
        data[place] = 97
    write("a.zip", bytes(data))
    assert "a.zip/a.txt, line 1: the archive breaks off or is damaged (" in refusal(
        documents, corpus_of("a.zip"))
    assert documents(corpus_of("a.zip"), BadText("skip")) == ["", "open"]


def test_bad_members_are_named_mended_or_left_out_like_files():
    files = {"a.txt": b"fine\nnot \xff\n", "p.txt": b"%PDF-1.5\n", "r.jsonl": b'{"text": 5}\n',
             "z.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 999)[:-30], "ok.txt": b"ok"}
    for suffix in (".tar.gz", ".zip"):
        write(f"a{suffix}", MAKERS[suffix](files))
        assert f"a{suffix}/a.txt, line 2: the text is not UTF-8" in refusal(
            documents, corpus_of(f"a{suffix}"))
        skip, replace = BadText("skip"), BadText("replace")
        skipped = documents(corpus_of(f"a{suffix}"), skip)
        assert skipped[:2] == ["", ""] and skipped[-1] == "ok"
        assert skip.tally.counts == {"skipped": 4}
        assert documents(corpus_of(f"a{suffix}"), replace)[:2] == ["fine\nnot \ufffd\n", ""]
        assert replace.tally.counts == {"replaced": 1, "skipped": 3}
        assert [incident.file for incident in skip.tally.incidents] == [
            f"a{suffix}/{name}" for name in list(files)[:4]]


# Damage


LINES = "".join(f"line {i * 7919 % 10007}\n" for i in range(9000)).encode()
LONG = {f"{i}.txt": LINES[i:] for i in range(4)}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_an_archive_that_breaks_off_anywhere_is_bad_text_and_what_stands_before_is_read(suffix):
    whole = MAKERS[suffix](LONG)
    write("c/t.txt", "more")
    for share in (0.999, 0.9, 0.6, 0.3):
        cut = len(tar_of(LONG)) - 10240 if (suffix, share) == (".tar", 0.999) else int(
            len(whole) * share)
        write(f"c/a{suffix}", whole[:cut])
        told = refusal(documents, corpus_of("c"))
        assert "archive breaks off or is damaged" in told or "file breaks off or is" in told
        bad_text = BadText("replace")
        *found, _ = documents(corpus_of("c"), bad_text)
        assert sum(bad_text.tally.counts.values()) >= 1
        assert all(LINES[i:].decode().startswith(text) for i, text in enumerate(found))
        if suffix in (".tar", ".tar.gz"):
            assert sum(map(len, found)) > 0.9 * share * 4 * len(LINES) - (1 << 16)
        *whole_ones, _ = documents(corpus_of("c"), BadText("skip"))
        assert set(filter(None, whole_ones)) <= {LINES[i:].decode() for i in range(4)}


def test_a_tar_archive_that_ends_between_two_members_is_noticed():
    whole = tar_of({"a.txt": b"a" * 512, "b.txt": b"b"})
    write("a.tar", whole[:1024])
    assert "a.tar, line 2: the archive breaks off or is damaged (empty header)" in refusal(
        documents, corpus_of("a.tar"))


def test_a_damaged_header_is_not_taken_for_the_end():
    data = bytearray(tar_of({"a.txt": b"a" * 512, "b.txt": b"b", "c.txt": b"c"}))
    data[1024] ^= 0x55
    write("a.tar", bytes(data))
    assert "a.tar, line 2: the archive breaks off or is damaged (bad checksum)" in refusal(
        documents, corpus_of("a.tar"))
    bad_text = BadText("skip")
    assert documents(corpus_of("a.tar"), bad_text) == ["a" * 512]
    assert bad_text.tally.counts == {"skipped": 1}


def test_what_stands_behind_the_end_of_a_tar_archive_is_not_passed_over():
    for packing in ("", ".gz"):
        write(f"a.tar{packing}", PACKERS[packing](tar_of({"a.txt": b"a"}) + tar_of(FEW)))
        assert "more stands behind its end, such as another archive" in refusal(
            documents, corpus_of(f"a.tar{packing}"))


def test_a_checksum_behind_the_last_member_is_looked_at():
    data = gzip.compress(tar_of(FEW))
    write("a.tar.gz", data[:-8] + b"\0" * 4 + data[-4:])
    assert "CRC check failed" in refusal(documents, corpus_of("a.tar.gz"))


def test_a_damaged_member_of_a_zip_archive_is_bad_and_the_others_stay():
    data = bytearray(zip_of({"a.txt": LINES, "b.txt": b"sound"}))
    data[200] ^= 0x55
    write("a.zip", bytes(data))
    assert "a.zip/a.txt, line " in refusal(documents, corpus_of("a.zip"))
    bad_text = BadText("skip")
    assert documents(corpus_of("a.zip"), bad_text) == ["", "sound"]
    assert bad_text.tally.counts == {"skipped": 1}


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_network_that_fails_while_an_archive_is_read_is_no_bad_text(suffix, monkeypatch):
    memory = fsspec.filesystem("memory")
    data = MAKERS[suffix](LONG)
    with memory.open(f"/net/a{suffix}", "wb") as stream:
        stream.write(data)
    corpus = corpus_of(f"memory://net/a{suffix}")
    real = streams._Remote.readinto

    def fail(self, buffer):
        if self.tell() >= len(data) // 2:
            raise WorkFailed("the network is gone")
        return real(self, buffer)

    monkeypatch.setattr(streams._Remote, "readinto", fail)
    for policy in POLICIES:
        with pytest.raises(WorkFailed, match="the network is gone"):
            documents(corpus, BadText(policy))


@pytest.mark.parametrize("suffix", MAKERS)
def test_what_is_no_archive_though_its_name_says_so_is_one_line(suffix):
    for data in (b"<html>not found</html>", LINES):
        write(f"a{suffix}", data)
        told = refusal(documents, corpus_of(f"a{suffix}"))
        assert told.startswith(f"a{suffix}, line 1: the ") and "breaks off or is damaged" in told


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_any_damaged_byte_is_damage_or_nothing_and_never_another_error(suffix):
    whole = MAKERS[suffix]({"a.txt": b"some text\n" * 40, "b/c.jsonl": b'{"text": "x"}\n' * 20})
    draw, noticed = random.Random(1), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        write(f"a{suffix}", bytes(damaged[:draw.choice([len(whole), draw.randrange(len(whole))])]))
        for policy in ("skip", "replace"):
            bad_text = BadText(policy)
            try:
                documents(corpus_of(f"a{suffix}"), bad_text)
            except Exception as error:
                assert "has no text: the archive" in str(error)
            noticed += bool(bad_text.tally.counts)
    assert noticed > 200


def test_a_header_that_claims_to_be_huge_is_not_read_into_memory():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    bomb = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20), 9)
    write("a.tar.gz", bomb)
    tracemalloc.start()
    try:
        assert "a header of 17,179,869,184 bytes" in refusal(documents, corpus_of("a.tar.gz"))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_disk_that_fails_is_no_bad_text(monkeypatch):
    for suffix in (".tar", ".tar.gz", ".zip"):
        write(f"a{suffix}", MAKERS[suffix](FEW))
        corpus = corpus_of(f"a{suffix}")

        class Failing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise OSError(5, "Input/output error")

            read1 = read

        with monkeypatch.context() as patch:
            patch.setattr(streams, "_open_raw", lambda file: Failing(b"x" * 999))
            for policy in POLICIES:
                with pytest.raises(OSError, match="Input/output error") as caught:
                    documents(corpus, BadText(policy))
                assert caught.value.filename == f"a{suffix}"


# Size


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_huge_member_is_never_in_memory(suffix, policy):
    """A bomb, too: 48 MB of text, of which the archive has some thousand bytes."""
    write(f"a{suffix}", MAKERS[suffix]({"a.txt": b"word " * (9 << 20), "b.txt": b"end"}))
    corpus, bad_text = corpus_of(f"a{suffix}"), BadText(policy)
    tracemalloc.start()
    try:
        sizes = [sum(map(len, document.pieces(bad_text))) for document in
                 corpus.documents(0, bad_text)]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert sizes == [45 << 20, 3] and not bad_text.tally.counts


def test_many_members_take_no_more_memory_than_few(monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 16)
    peaks = []
    for count in (300, 6000):
        write("a.tar.gz", gzip.compress(tar_of({f"{i}.txt": b"text" for i in range(count)},
                                               tarfile.USTAR_FORMAT), 1))
        corpus = corpus_of("a.tar.gz")
        tracemalloc.start()
        assert sum(1 for _ in corpus.documents(0, BadText("error"))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # of 6000 headers, the library alone would keep 4 MB


def test_a_member_may_be_read_again_while_it_is_the_current_one_and_the_archive_not_often(
        monkeypatch):
    opened = []
    real = tar.open_archive
    monkeypatch.setattr(tar, "open_archive", lambda file: opened.append(file) or real(file))
    write("a.tar.gz", MAKERS[".tar.gz"](LONG))
    corpus, bad_text = corpus_of("a.tar.gz"), BadText("skip")
    for i, document in enumerate(corpus.documents(0, bad_text)):
        for _ in range(3):
            assert "".join(document.pieces(bad_text)) == LINES[i:].decode()
    assert len(opened) == 6  # a look for problems and the reading, three times


def test_a_single_large_member_is_split_by_its_tail(monkeypatch):
    monkeypatch.setattr("data.documents.split.SMALL_CORPUS", 10)
    write("a.tar.gz", MAKERS[".tar.gz"]({"one.txt": LINES}))
    dataset = prepare(recipe(sources=["a.tar.gz"], tokenizer="byte"))
    assert LINES.endswith(split_documents(dataset, "val")[0])
    write("b.tar.gz", MAKERS[".tar.gz"](LONG | {f"x{i}.txt": b"x%d" % i for i in range(20)}))
    assert len(split_documents(prepare(recipe(sources=["b.tar.gz"], tokenizer="byte", out="b")),
                               "val")) >= 1


def test_what_was_stored_adds_up_to_the_size_of_the_archive():
    from data.documents.split import SplitPlan
    for suffix in (".tar", ".tar.gz", ".zip"):
        write(f"a{suffix}", MAKERS[suffix](LONG))
        for policy in POLICIES:
            corpus = corpus_of(f"a{suffix}", on_bad_text=policy)
            found = list(SplitPlan(corpus).pieces(0, BadText(policy)))
            assert sum(piece.stored for piece in found) == corpus.files[0].size
            assert [piece.place for piece in found] == [(0, i) for i in range(len(found))]


# The whole


def test_cleaning_quotas_and_overlap_work_with_members():
    files = {f"{i}.txt": prose(9 + i % 5, i % 20).encode() for i in range(40)} | {"s.txt": b"ab"}
    write("a.tar.gz", MAKERS[".tar.gz"](files))
    write("e.zip", zip_of({"e.txt": prose(60, 3).encode()}))
    cleaned = prepare(recipe(sources=["a.tar.gz"], tokenizer="byte", drop_duplicates=True,
                             min_characters=5, normalize="NFC", overlap_with="e.zip"))
    assert cleaned.manifest.cleaning["duplicates"] > 10
    assert cleaned.manifest.cleaning["too_short"] == 1
    assert json.loads(Path("out/overlap.json").read_text())["documents"] == 1
    bounded = prepare(recipe(sources=[{"path": "a.tar.gz", "max_tokens": 900}], tokenizer="byte",
                             split="documents", out="bounded"))
    assert sum(s.tokens for s in bounded.manifest.splits.values()) in (899, 900)


def test_an_evaluation_text_in_an_archive_is_not_read_as_the_first_source_is():
    lines = "".join(json.dumps({"text": prose(30, i)}) + "\n" for i in range(20)).encode()
    write("r.tar.gz", MAKERS[".tar.gz"]({"r.txt": lines}))
    write("e.zip", zip_of({"e.txt": prose(60, 3).encode()}))
    prepare(recipe(sources=[{"path": "r.tar.gz", "format": "jsonl"}], tokenizer="byte",
                   overlap_with="e.zip"))
    assert json.loads(Path("out/overlap.json").read_text())["documents"] == 1


def test_a_mixture_may_have_archives_and_others(monkeypatch):
    write("a.tar.gz", MAKERS[".tar.gz"]({f"{i}.txt": prose(9, i).encode() for i in range(20)}))
    write_jsonl(Path("b.jsonl"), [prose(9, 50 + i) for i in range(20)])
    dataset = prepare(recipe(sources=[{"path": "a.tar.gz", "weight": 1},
                                      {"path": "b.jsonl", "weight": 2}], tokenizer="byte"))
    assert everything(dataset) == sorted(
        [prose(9, i) for i in range(20)] + [prose(9, 50 + i) for i in range(20)])
    assert isinstance(dataset, Dataset)


def header_of(kind: bytes, content: bytes) -> bytes:
    """A header of tar that stands before another one."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(content)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(("kind", "content", "number", "problem"), [
    (tarfile.XHDTYPE, b"9" * 4096, 1, "a header with an endless number"),
    (tarfile.XGLTYPE, b"9" * 4096, 1, "a header with an endless number"),
    (tarfile.GNUTYPE_LONGNAME, b"n" * (300 << 10), 4, "a header of 1,048,576 bytes"),
    (tarfile.XHDTYPE, b"17 comment=words\n" * 2000, 40, "a header of 1,048,576 bytes"),
    (tarfile.GNUTYPE_LONGNAME, b"n" * 100, 1000, "recursion")])
def test_headers_that_would_take_for_ever_are_damage(kind, content, number, problem):
    sound = tar_of({"a.txt": b"text"})
    write("a.tar", header_of(kind, content.replace(b"9", b"n")) + sound)
    write("b.tar", header_of(kind, content) * number + sound)
    assert problem in refusal(documents, corpus_of("b.tar"))
    write("a.tar", sound)
    assert documents(corpus_of("a.tar")) == ["text"]


def test_what_a_sparse_member_holds_may_be_long_and_all_digits():
    parts = {b"0": b"%011o\0" % (3 << 20)}
    header = tarfile.TarInfo("a.txt")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 3 << 20
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0" % 0 + parts[b"0"]  # one stretch, which is all of it
    block[483:495] = parts[b"0"]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    write("a.tar", bytes(block) + b"7" * (3 << 20) + bytes(1024))
    assert documents(corpus_of("a.tar")) == ["7" * (3 << 20)]


def test_a_member_that_asks_for_more_memory_than_there_is_counts_as_damaged(monkeypatch):
    write("a.zip", zip_of({"a.txt": b"text", "b.txt": b"more"}, zipfile.ZIP_LZMA))
    assert documents(corpus_of("a.zip")) == ["text", "more"]
    monkeypatch.setattr(zipfile.ZipExtFile, "read1", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert "damaged (MemoryError)" in refusal(documents, corpus_of("a.zip"))
