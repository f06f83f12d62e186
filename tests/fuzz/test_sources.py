"""What data/prepare.py reads: text, records and archives, packed or not, under every policy."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.recipe import build_recipe
from data.sources.bad_text import BadText
from data.sources.files import list_files
from tests.data.sources.sample_files import PACKERS, corpus_of, documents, file_of, read, write
from tests.fuzz.inputs import TEXTS, as_json, damaged, fuzzed, is_read, mutated

POLICIES = st.sampled_from(["error", "replace", "skip"])
RECORD = {"text": "Größe, naïve café", "meta": {"id": 1, "words": ["a", "b"]}, "n": 1.5}
PLAIN = {"a.txt": "Größe\n\nzwei  \n".encode() * 20,
         "a.jsonl": (json.dumps(RECORD) + "\n").encode() * 3,
         "a.json": json.dumps([RECORD] * 3, ensure_ascii=False).encode(),
         "a.csv": b'text,n\n"a ""b""\nc",1\nd,2\n', "a.tsv": b"text\tn\na\t1\n"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read_all(name, data, policy="replace", **fields):
    """The texts of a file, of which each can be written as UTF-8."""
    for text in read(file_of(name, data, **fields), BadText(policy)):
        text.encode()


@pytest.mark.parametrize("name", PLAIN)
def test_any_file_of_text_or_records_is_read_or_refused(name):
    seen = set()
    record = mutated(RECORD).map(as_json) if "json" in name else st.nothing()

    @fuzzed(60)
    @given(st.one_of(damaged(PLAIN[name], [b'""', b";", b"\t"]), record), POLICIES)
    def tried(data, policy):
        seen.add(is_read(lambda: read_all(name, data, policy)))

    tried()
    assert seen == {True, False}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "gb18030", "shift_jis", "iso2022_jp",
                                      "hz", "cp037", "euc_kr"])
def test_any_bytes_in_any_encoding_are_read_or_refused(encoding):
    sound = ("Text, 123\n" * 30).encode(encoding)

    @fuzzed(10)
    @given(damaged(sound, [b"\x1b$B", b"~{", b"\x81\x30", b"\xd8\x00", b"\x00\xd8"]), POLICIES)
    def tried(data, policy):
        is_read(lambda: read_all("a.txt", data, policy, encoding=encoding))

    tried()
    assert is_read(lambda: read_all("a.txt", sound, encoding=encoding))


@pytest.mark.parametrize("ending", [ending for ending in PACKERS if ending])
def test_any_packed_file_is_read_or_refused(ending):
    sound = PACKERS[ending](PLAIN["a.jsonl"])
    seen = set()

    @fuzzed(40)
    @given(damaged(sound), POLICIES)
    def tried(data, policy):
        seen.add(is_read(lambda: read_all("a.jsonl" + ending, data, policy)))

    tried()
    assert seen == {True, False}


def test_any_parquet_is_read_or_refused():
    pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), file)
    read_all("a.parquet", file.getvalue())

    @fuzzed(40)
    @given(damaged(file.getvalue()), POLICIES)
    def tried(data, policy):
        is_read(lambda: read_all("a.parquet", data, policy))

    tried()


def tar_of(form, sparse=False):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in {**PLAIN, "x" * 120 + ".txt": b"long", "ö.md": b"text"}.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            header.pax_headers = {"comment": "y" * 600} if form == tarfile.PAX_FORMAT else {}
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def zip_of(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in PLAIN.items():
            archive.writestr(name, content)
    return file.getvalue()


ARCHIVES = {"pax.tar": tar_of(tarfile.PAX_FORMAT), "gnu.tar": tar_of(tarfile.GNU_FORMAT),
            "packed.tar.gz": PACKERS[".gz"](tar_of(tarfile.GNU_FORMAT)),
            "stored.zip": zip_of(zipfile.ZIP_STORED), "packed.zip": zip_of(zipfile.ZIP_DEFLATED),
            "lzma.zip": zip_of(zipfile.ZIP_LZMA), "bz2.zip": zip_of(zipfile.ZIP_BZIP2)}
PARTS = [b"ustar\x0000", b"ustar  \0", b"\x80" + b"\xff" * 11, b"00000000000\0", b"77777777777\0",
         b"-0000000001\0", b"30 hdrcharset=BINARY\n", b"22 GNU.sparse.major=1\n", b"PK\x01\x02",
         b"PK\x05\x06", b"\xff\xff\xff\xff", b"x", b"L", b"S", b"g", b"5", b"2"]


def read_archive(name, data, policy):
    write(name, data)
    return documents(corpus_of(name, on_bad_text=policy))


@pytest.mark.parametrize("name", ARCHIVES)
def test_any_archive_is_read_or_refused(name):
    assert len(read_archive(name, ARCHIVES[name], "error")) >= 10
    seen = set()

    @fuzzed(40)
    @given(damaged(ARCHIVES[name], PARTS), POLICIES)
    def tried(data, policy):
        seen.add(is_read(lambda: read_archive(name, data, policy)))

    tried()
    assert seen == {True, False}


def with_checksum(block):
    """A tar header that says the right sum of itself."""
    block = block[:148] + b" " * 8 + block[156:512]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12),
          "type": (156, 1), "link": (157, 100), "magic": (257, 8), "device": (329, 16),
          "prefix": (345, 155), "sparse": (386, 97)}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_any_header_of_a_tar_archive_with_the_right_sum_is_read_or_refused(form):
    sound = tar_of(form)
    headers = [at for at in range(0, len(sound), 512) if b"ustar" in sound[at + 257:at + 263]]
    contents = st.one_of(st.binary(max_size=12), st.sampled_from(PARTS))
    seen = set()

    @fuzzed(80)
    @given(st.lists(st.tuples(st.sampled_from(headers), st.sampled_from(sorted(FIELDS)), contents),
                    min_size=1, max_size=3), POLICIES)
    def tried(changes, policy):
        data = bytearray(sound)
        for at, field, new in changes:
            start, size = FIELDS[field]
            data[at + start:at + start + size] = new[:size].ljust(size, b"\0")
            data[at:at + 512] = with_checksum(bytes(data[at:at + 512]))
        seen.add(is_read(lambda: read_archive("a.tar", bytes(data), policy)))

    tried()
    assert seen == {True, False}


def member(kind, content, name=b"a.txt"):
    """A member of a tar archive, of any kind."""
    header = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(content)
    header += b"%011o\0" % 0 + b" " * 8 + kind + b"\0" * 100 + b"ustar\x0000"
    return with_checksum(header.ljust(512, b"\0")) + content + b"\0" * (-len(content) % 512)


END = b"\0" * 1024
BOMBS = {
    "digits": member(b"x", b"9" * (1 << 22)), "numbers": member(b"x", b"9 a" * (1 << 20)),
    "many headers": member(b"x", b"6 a=b\n") * 3000, "names": member(b"L", b"n" * 100) * 3000,
    "a name": member(b"L", b"n" * (1 << 25)), "records": member(b"x", b"8 abc=d\n" * (1 << 17)),
    "for all": member(b"g", b"9" * (1 << 20)), "sparse": member(b"S", b"9\n" * 1000)}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_headers_of_a_tar_archive_take_neither_time_nor_memory(name):
    data = BOMBS[name] + member(b"0", b"text") + END
    is_read(lambda: read_archive("a.tar", data, "skip"))
    assert read_archive("b.tar", member(b"0", b"text") + END, "error") == ["text"]


@pytest.mark.parametrize("content", [
    b"[" * 10**6, b'{"a":' * 10**6, b"9" * (1 << 25), b'"' + b"x" * (1 << 25), b"[" + b"1," * 10**5,
    b"{}" * 10**5, b'{"text": "' + b"\\ud800" * 10**6 + b'"}', b" " * (1 << 25)],
    ids=["lists", "objects", "digits", "text", "numbers", "empty", "surrogates", "blanks"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_much_of_anything_is_read_or_refused_in_time(name, content):
    is_read(lambda: read_all(name, content, "skip"))


PATHS = st.one_of(TEXTS, st.sampled_from(["\0/*", "*\0*", "[", "[!", "**", "a" * 300, "~nobody/*",
                                          "\ud800", "\udcff", "x/\0.tar"]))


def is_here(path):
    """A path within this folder, of characters that a configuration or a command line can have."""
    return (path and not path.startswith((".", "/", "~", "-")) and "://" not in path
            and not re.search("[\0\ud800-\udc7f\udd00-\udfff]", path))


def test_any_path_names_files_or_is_refused():
    write("a.txt")

    @fuzzed(50)
    @given(PATHS.filter(is_here))
    def tried(path):
        is_read(lambda: list_files(build_recipe({"sources": [path]}, {}).sources,
                                   write("fetched/x").parent))

    tried()
