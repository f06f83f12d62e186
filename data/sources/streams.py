"""Opening a file of a corpus: plain or compressed, here or behind a URL."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data.sources.files import File
from data.sources.kinds import SAMPLE_BYTES, why_no_text
from data.sources.transcoding import Transcoded
from gpt.errors import UserError, WorkFailed

BLOCK_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 12  # may grow to 2^17 bytes for every 4 of them: a bound on memory


class BrokenFile(Exception):
    """A file that cannot be read to its end. Its text says why, for people.

    line: where, if the reader knows it better than by counting records.
    """

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line


class NoText(BrokenFile):
    """A file that is something else than text, or in another encoding: none of it can be used."""


class Meter:
    """How far the file that is being read has come, in bytes as stored."""

    def __init__(self) -> None:
        self.follow(None)

    def follow(self, raw: Any) -> None:
        """Watch a file that was just opened; None for what has no position."""
        self._raw, self._last = raw, 0

    @property
    def position(self) -> int:
        """Bytes read of it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none yet
            self._last = int(self._raw.tell())
        return self._last


@contextlib.contextmanager
def open_file(file: File, meter: Meter | None = None) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed. Reading raises BrokenFile where they are damaged."""
    with _open_guarded(file, meter) as stream:
        yield io.BufferedReader(stream, BLOCK_BYTES)


@contextlib.contextmanager
def open_text(file: File, meter: Meter | None = None) -> Iterator[BinaryIO]:
    """The same for text, as UTF-8. Reading raises NoText if it is something else."""
    with _open_guarded(file, meter) as guarded:
        stream: io.RawIOBase = _Recognized(guarded, file.encoding)
        if file.encoding != "utf-8":
            stream = Transcoded(stream, file.encoding)
        yield io.BufferedReader(stream, BLOCK_BYTES)


@contextlib.contextmanager
def _open_guarded(file: File, meter: Meter | None) -> Iterator[_Guarded]:
    with _open_raw(file) as raw:
        if meter is not None:
            meter.follow(raw)
        yield _Guarded(_decompressed(raw, file), file.path)


def read_block(stream: Any, size: int) -> bytes:
    """The next bytes; fewer than `size` at the end alone, or before the place of damage."""
    parts: list[bytes] = []
    read = getattr(stream, "read1", stream.read)  # one step
    try:
        while size and (data := read(size)):
            parts.append(data)
            size -= len(data)
    except BrokenFile:
        if not parts:
            raise
    return b"".join(parts)


@contextlib.contextmanager
def open_archive(file: File) -> Iterator[tuple[Any, Any]]:
    """(the file as it is stored, its bytes decompressed)"""
    with _open_raw(file) as raw:
        stream = _Guarded(_decompressed(raw, file), file.path)
        yield raw, stream if file.compression is None else io.BufferedReader(stream, BLOCK_BYTES)


@contextlib.contextmanager
def open_seekable(file: File, meter: Meter) -> Iterator[BinaryIO]:
    """The same for formats that are read from both ends; what is compressed goes to the disk."""
    if file.compression is None:
        with _open_raw(file) as raw:
            meter.follow(raw)
            yield raw
        return
    with open_file(file, meter) as stream, tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked, BLOCK_BYTES)
        unpacked.seek(0)
        yield unpacked


def _open_raw(file: File) -> Any:
    if file.opener is not None:
        return file.opener()
    if "://" in file.path:
        return _Remote(file.path)
    try:
        return Path(file.path).open("rb")
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error.strerror}; make it readable, or leave it "
                        "out of the sources") from error


def _decompressed(raw: Any, file: File) -> Any:
    match file.compression:
        case "gzip":
            return gzip.GzipFile(fileobj=raw)
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case "zstd":
            return ZstdFile(raw, file.path)
    return raw


class _Remote(io.RawIOBase):
    """A file behind a URL. That reading it fails says nothing about its text."""

    def __init__(self, url: str):
        import fsspec
        self._url = url
        with self._named_failure():
            files, path = fsspec.core.url_to_fs(url)
            self._file = files.open(path, "rb")

    @contextlib.contextmanager
    def _named_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the network and its libraries raise
            raise WorkFailed(f"cannot read {self._url}: {type(error).__name__}: "
                             f"{' '.join(str(error).split())}; run the same command again to go "
                             "on, or fetch the file and name it as the source") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._named_failure():
            data = self._file.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._named_failure():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


class ZstdFile(io.RawIOBase):
    """Decompress Zstandard frames; unlike the library's own reader it notices a torn end."""

    def __init__(self, raw: BinaryIO, path: str):
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"reading {path} needs the package zstandard: pip install "
                            "'gpt-toolkit[data]'") from error
        self._raw, self._frames = raw, zstandard.ZstdDecompressor()
        self._frame = self._frames.decompressobj()
        self._input, self._inside = b"", False
        self._output = memoryview(b"")
        self._error = zstandard.ZstdError

    def readable(self) -> bool:
        """As io.RawIOBase has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end. Raises EOFError where a frame is torn."""
        while not self._output:
            self._input = self._input or self._raw.read(_ZSTD_BYTES)
            if not self._input:
                if self._inside:
                    raise EOFError("it ends inside a compressed frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count

    def _decompress(self) -> None:
        """Turn input into output; one frame may follow another."""
        if self._frame.eof:
            self._frame = self._frames.decompressobj()
        try:
            self._output = memoryview(self._frame.decompress(self._input))
        except self._error as error:
            raise zlib.error(str(error)) from error
        self._inside = not self._frame.eof
        self._input = self._frame.unused_data if self._frame.eof else b""


class _Guarded(io.RawIOBase):
    """A stream whose damage is one kind of error, whatever library found it."""

    def __init__(self, stream: Any, path: str):
        self._stream, self._path = stream, path
        self._damage: BrokenFile | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._damage is not None:  # which the library may take for an end
            raise self._damage
        try:  # to give what comes before the damage, no more than one step
            data = getattr(self._stream, "read1", self._stream.read)(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
                raise OSError(error.errno, error.strerror, self._path) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            self._damage = BrokenFile(f"the file breaks off or is damaged ({reason})")
            raise self._damage from error
        buffer[:len(data)] = data
        return len(data)


class _Recognized(io.RawIOBase):
    """A stream of text; of what begins like something else, nothing can be read."""

    def __init__(self, stream: io.RawIOBase, encoding: str):
        self._stream, self._encoding = stream, encoding
        self._start: bytes | None = None
        self._problem: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._start is None:
            self._start = read_block(self._stream, SAMPLE_BYTES)
            self._problem = why_no_text(self._start, self._encoding)
        if self._problem is not None:
            raise NoText(self._problem, 1)
        if not self._start:
            return self._stream.readinto(buffer) or 0
        count = min(len(buffer), len(self._start))
        buffer[:count], self._start = self._start[:count], self._start[count:]
        return count
