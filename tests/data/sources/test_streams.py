"""Opening files: every compression, and damage told apart from failing disks and networks."""

from __future__ import annotations

import io
import sys
import tracemalloc
from pathlib import Path

import fsspec
import pytest

from data.sources import streams
from data.sources.bad_text import BadText
from data.sources.files import File
from data.sources.streams import BrokenFile, Meter, ZstdFile, open_file, open_seekable, read_block
from gpt.errors import UserError, WorkFailed
from tests.data.sources.sample_files import PACKERS, file_of, files_of, read, zstandard

TEXT = "".join(f"line {i}: é 中\n" for i in range(300)).encode()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def content(file: File) -> bytes:
    with open_file(file) as stream:
        return stream.read()


@pytest.mark.parametrize("data", [TEXT, b"", b"x", b"\0" * 5000], ids=["text", "none", "x", "nul"])
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_is_read_as_what_was_packed(suffix, data):
    file = file_of(f"a.txt{suffix}", PACKERS[suffix](data))
    assert content(file) == data
    with open_seekable(file, Meter()) as stream:
        assert stream.read() == data
        stream.seek(-len(data) // 2, io.SEEK_END)
        assert stream.read() == data[len(data) - (len(data) + 1) // 2:]


def test_a_packed_file_is_read_in_lines_and_blocks_of_any_size():
    for suffix, pack in PACKERS.items():
        with open_file(file_of(f"a.txt{suffix}", pack(TEXT))) as stream:
            assert stream.readline() == TEXT.splitlines(True)[0]
            assert stream.read(1) + stream.read(0) + stream.read(7) + stream.read() == (
                TEXT[len(TEXT.splitlines(True)[0]):])


def test_what_stands_between_frames_is_passed_over():
    skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    file = file_of("a.zst", skippable + zstandard.compress(b"a") + skippable
                   + zstandard.compress(b"b") + skippable)
    assert content(file) == b"ab"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zstd"])
def test_a_packed_file_that_breaks_off_anywhere_is_noticed(suffix):
    """Except between two parts that are whole, which nothing tells from an end."""
    whole = PACKERS[suffix](TEXT)
    parts = {0, len(PACKERS[suffix](TEXT[:5]))} if suffix == ".gz" else {0}
    for length in [*range(1, 60), *range(60, len(whole), 7), *range(len(whole) - 12, len(whole))]:
        if length not in {0, *parts} and not (suffix == ".gz" and length < 40):
            with pytest.raises(BrokenFile, match=r"^the file breaks off or is damaged \(.+\)$"):
                content(file_of(f"a.txt{suffix}", whole[:length]))
    assert content(file_of(f"a.txt{suffix}", whole)) == TEXT


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_damaged_byte_is_damage_or_nothing_and_never_another_error(suffix):
    whole = PACKERS[suffix](TEXT)
    noticed = 0
    for place in range(0, len(whole), 11):
        damaged = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:]
        try:
            content(file_of(f"a.txt{suffix}", damaged))
        except BrokenFile:
            noticed += 1
    assert noticed > 5


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_what_is_not_packed_at_all_is_damage(suffix):
    with pytest.raises(BrokenFile):
        content(file_of(f"a.txt{suffix}", TEXT))


def peak_of_unpacking(data: bytes) -> int:
    """Bytes of memory that were taken at once."""
    stream, buffer = ZstdFile(io.BytesIO(data), "a.zst"), bytearray(1 << 16)
    tracemalloc.start()
    try:
        while stream.readinto(buffer):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_few_bytes_that_unpack_to_gigabytes_do_so_a_little_at_a_time(monkeypatch):
    """Zstandard writes 128 KiB of one byte in four; the library unpacks all of its input."""
    packed = zstandard.compress(bytes(64 << 20))
    monkeypatch.setattr(streams, "_ZSTD_BYTES", 16)
    assert peak_of_unpacking(packed) < 8 << 20
    monkeypatch.setattr(streams, "_ZSTD_BYTES", 1 << 17)
    assert peak_of_unpacking(packed) > 32 << 20


def test_the_bound_on_unpacking_is_well_below_a_gigabyte():
    assert streams._ZSTD_BYTES // 4 << 17 <= 1 << 28


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_what_stands_before_damage_is_read_and_the_damage_told_ever_after(suffix):
    text = b"".join(b"%d\n" % (i * 7919 % 10007) for i in range(60_000))
    packed = PACKERS[suffix](text)
    for data in (packed[:len(packed) * 3 // 4], packed[:-5] + b"wrong"):
        with open_file(file_of(f"a{suffix}", data)) as stream:
            found = b""
            with pytest.raises(BrokenFile):
                while block := read_block(stream, 50_000):
                    assert len(block) == 50_000 or text.startswith(found + block)
                    found += block
            assert len(found) > 20_000 and text.startswith(found)
            for _ in range(2):
                with pytest.raises(BrokenFile):
                    read_block(stream, 10)


def test_blocks_are_as_long_as_asked_however_short_the_reads():
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(min(size or 0, 3))

    stream = Slow(TEXT[:100])
    assert [len(read_block(stream, 40)) for _ in range(4)] == [40, 40, 20, 0]


def test_a_file_that_may_not_be_read_is_one_line(monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    file = file_of("a.txt", TEXT)
    monkeypatch.setattr(Path, "open", refuse)
    for policy in ("error", "replace", "skip"):
        with pytest.raises(UserError, match=r"^cannot read a\.txt: Permission denied; make it "
                                            r"readable, or leave it out of the sources$"):
            read(file, BadText(policy))


class Failing(io.BytesIO):
    """Gives bytes of the first half of some, and of the second an error."""

    def __init__(self, data: bytes, error: Exception):
        super().__init__(data)
        self.half, self.error = len(data) // 2, error

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.half - self.tell():
            raise self.error
        return super().read(size)

    read1 = read


@pytest.mark.parametrize("policy", ["error", "replace", "skip"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "a.jsonl.gz", "a.csv.bz2", "a.json.xz",
                                  "a.parquet"])
def test_a_disk_that_fails_is_no_bad_text(name, policy, monkeypatch):
    suffix = Path(name).suffix
    data = PACKERS.get(suffix, bytes)(TEXT)
    file = file_of(name, data)
    failing = Failing(data, OSError(5, "Input/output error"))
    monkeypatch.setattr(streams, "_open_raw", lambda file: failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(file, BadText(policy))
    assert caught.value.filename == name or suffix == ".parquet"


class Payload(Exception):
    """As a library for the network raises it: no OSError."""


@pytest.mark.parametrize("error", [Payload("not enough data"), OSError("connection lost"),
                                   OSError(104, "Connection reset by peer"), ValueError("closed")])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.zst", "a.parquet"])
def test_a_network_that_fails_is_no_bad_text(name, error, monkeypatch):
    memory = fsspec.filesystem("memory")
    data = PACKERS.get(Path(name).suffix, bytes)(TEXT)
    with memory.open(f"/net/{name}", "wb") as stream:
        stream.write(data)
    [file] = files_of(f"memory://net/{name}")
    monkeypatch.setattr(type(memory), "open",
                        lambda *args, **fields: Failing(data, error))
    for policy in ("error", "replace", "skip"):
        with pytest.raises(WorkFailed) as caught:
            read(file, BadText(policy))
        assert str(caught.value) == (
            f"cannot read memory:///net/{name}: {type(error).__name__}: {error}; run the same "
            "command again to go on, or fetch the file and name it as the source")


def test_a_file_that_is_gone_from_its_address_is_one_line():
    memory = fsspec.filesystem("memory")
    with memory.open("/net/b.txt", "wb") as stream:
        stream.write(TEXT)
    [file] = files_of("memory://net/b.txt")
    memory.rm("/net/b.txt")
    with pytest.raises(WorkFailed, match=r"cannot read memory:///net/b\.txt: FileNotFoundError"):
        read(file)


def test_packed_files_behind_an_address_are_read_like_others():
    memory = fsspec.filesystem("memory")
    for suffix, pack in PACKERS.items():
        with memory.open(f"/net/c.txt{suffix}", "wb") as stream:
            stream.write(pack(TEXT))
        [file] = files_of(f"memory://net/c.txt{suffix}")
        meter = Meter()
        with open_file(file, meter) as opened:
            assert opened.read() == TEXT
            assert meter.position == file.size


def test_a_missing_library_is_named(monkeypatch):
    file = file_of("a.txt.zst", PACKERS[".zst"](TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"^reading a\.txt\.zst needs the package zstandard: pip "
                                        r"install 'gpt-toolkit\[data\]'$"):
        read(file)


def test_a_meter_tells_bytes_as_stored_and_begins_anew_with_every_file():
    meter = Meter()
    assert meter.position == 0
    file = file_of("a.txt.gz", PACKERS[".gz"](TEXT * 50))
    with open_file(file, meter) as stream:
        stream.read()
        assert meter.position == file.size < len(TEXT)
    assert meter.position == file.size  # of a closed file: what was last seen
    meter.follow(None)
    assert meter.position == 0
    with open_file(file, meter):
        assert meter.position == 0


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_what_asks_for_more_memory_than_there_is_counts_as_damaged(ending, tmp_path, monkeypatch):
    file = file_of(str(tmp_path / f"a.txt{ending}"), PACKERS[ending](b"text"))
    assert read(file) == ["text"]

    class Greedy:
        def read1(self, size):
            raise MemoryError  # as lzma does for the dictionary that a header asks for

        read = read1

    monkeypatch.setattr(streams, "_decompressed", lambda raw, file: Greedy())
    with open_file(file) as stream, pytest.raises(BrokenFile, match=r"damaged \(MemoryError\)"):
        stream.read()
