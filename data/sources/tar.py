"""Tar archives, read onwards from their start, whatever they are packed in."""

from __future__ import annotations

import contextlib
import errno
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from data.sources.files import File
from data.sources.streams import BLOCK_BYTES, BrokenFile, open_archive, read_block
from gpt.errors import UserError, WorkFailed

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_OF_A_HEADER = 1 << 20  # bytes; one that claims to be larger is damage, or worse
_MOST_DIGITS = 1000  # in a row; some versions of tarfile take the square of that, or longer
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError, OverflowError, EOFError,
           struct.error, zlib.error, lzma.LZMAError, MemoryError)  # as the libraries raise it

_DIGITS = re.compile(rb"[0-9]+")


class Entry(NamedTuple):
    """What an archive says of a member."""

    name: str
    size: int
    kind: str  # file | folder | link | device
    is_encrypted: bool = False


@contextlib.contextmanager
def damage_is_told(path: str) -> Iterator[None]:
    """Turn what a library raises about an archive into BrokenFile, but not what a disk does."""
    try:
        yield
    except (UserError, WorkFailed):  # which are a ValueError and a RuntimeError
        raise
    except (*_DAMAGE, OSError) as error:
        # zipfile takes whatever a disk says for an archive that is none. Where a damaged list of
        # members has places before the file, seeking is what fails.
        disk = error if isinstance(error, OSError) else error.__context__
        if isinstance(disk, OSError) and disk.errno not in (None, errno.EINVAL):
            raise OSError(disk.errno, disk.strerror, path) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenFile(f"the archive breaks off or is damaged ({reason})") from error


class Tar:
    """Members of a tar archive, which is read onwards alone.

    To read a member twice, as a policy or cleaning may ask for, there are several passes, each some
    way behind the other: all of them together read the archive as often as its members are read.
    """

    def __init__(self, archive: File):
        self._archive, self._passes = archive, [_Pass(archive)]

    def entries(self) -> Iterator[Entry]:
        """What the archive says of each member."""
        first, number = self._passes[0], 0
        while (header := first.go_to(number)) is not None:
            yield Entry(header.name, header.size, "file" if header.isreg() else "folder"
                        if header.isdir() else "link" if header.islnk() or header.issym()
                        else "device")
            number += 1

    def open(self, number: int) -> Any:
        """The bytes of the member that `entries` gave last."""
        ready = [each for each in self._passes if each.is_before(number)]
        if not ready:
            ready = [_Pass(self._archive)]
            self._passes += ready
        return max(ready, key=lambda each: each.number).open(number)

    def position(self) -> int:
        """How far the archive is read."""
        return max(each.position() for each in self._passes)

    def close(self) -> None:
        """Close the file."""
        for each in self._passes:
            each.close()


class _Pass:
    """One reading of a tar archive. number: of the member that it stands at."""

    def __init__(self, archive: File):
        self.number, self._path = -1, archive.path
        self._is_read = False
        self._header: tarfile.TarInfo | None = None
        self._closing = contextlib.ExitStack()
        self._raw, stream = self._closing.enter_context(open_archive(archive))
        self._file = _Onwards(stream, self._raw if archive.compression is None else None)
        self._tar: tarfile.TarFile | None = None

    def go_to(self, number: int) -> tarfile.TarInfo | None:
        """The header of a member that lies ahead; None at the end."""
        with damage_is_told(self._path):
            while self.number < number:
                self._file.begin_header()
                if self._tar is None:
                    self._tar = tarfile.TarFile(fileobj=cast(Any, self._file), tarinfo=_Header,
                                                encoding="utf-8", errors="surrogateescape")
                self._header = self._tar.next()
                cast(Any, self._tar).members = []  # it would keep all of them
                self.number, self._is_read = self.number + 1, False
            if self._header is None:
                self._file.require_nothing_more()
            return self._header

    def is_before(self, number: int) -> bool:
        """Whether a member can still be read."""
        return self.number < number or (self.number == number and not self._is_read)

    def open(self, number: int) -> Any:
        """A member's bytes, once."""
        header = self.go_to(number)
        assert header is not None and self._tar is not None
        self._is_read = True
        self._file.end_header()
        return self._tar.extractfile(header) if header.issparse() else _Stretch(self._file,
                                                                                header.size)

    def position(self) -> int:
        """How far the archive is read, as stored."""
        return int(self._raw.tell())

    def close(self) -> None:
        """Close the file."""
        self._closing.close()


class _Stretch:
    """The next bytes of a file, and no more. (The library's own gives none before damage.)"""

    def __init__(self, file: _Onwards, size: int):
        self._file, self._left = file, size

    def read1(self, size: int) -> bytes:
        if self._left <= 0:
            return b""
        data = self._file.read_on(min(size, self._left))
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        self._left -= len(data)
        return data

    def close(self) -> None:
        pass


class _Header(tarfile.TarInfo):
    """A member's header; where there is none, the library would take most damage for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two blocks of zeros, with which an archive ends
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _Onwards:
    """A stream as tarfile wants it, to tell and seek, of which no header is large.

    seekable: the file itself, where it is not compressed.
    """

    def __init__(self, stream: Any, seekable: Any):
        self._stream, self._seekable, self._at = stream, seekable, 0
        self.begin_header()

    def begin_header(self) -> None:
        """All that tarfile reads from here on is one member's, with what stands before it."""
        self._left_of_header: int | None = _MOST_OF_A_HEADER

    def end_header(self) -> None:
        """What tarfile reads now is what a member holds."""
        self._left_of_header = None

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if self._left_of_header is None:
            return self.read_on(size)
        if size > self._left_of_header:
            raise tarfile.ReadError(f"a header of {max(size, _MOST_OF_A_HEADER):,} bytes")
        self._left_of_header -= size
        data = self.read_on(size)
        if len(data) > _MOST_DIGITS and max(map(len, _DIGITS.findall(data)),
                                            default=0) > _MOST_DIGITS:
            raise tarfile.ReadError("a header with an endless number")
        return data

    def read_on(self, size: int) -> bytes:
        """The next bytes, of whatever."""
        data = read_block(self._stream, size)
        self._at += len(data)
        return data

    def seek(self, place: int) -> None:
        if place < self._at:
            raise tarfile.ReadError("a member of negative size")
        if self._seekable is not None:
            self._seekable.seek(place)
            self._at = place
        while self._at < place and self.read_on(min(BLOCK_BYTES, place - self._at)):
            pass

    def require_nothing_more(self) -> None:
        """Read what stands behind the end, which is zeros; so checksums are looked at, too."""
        while data := self.read_on(BLOCK_BYTES):
            if data.strip(b"\0"):
                raise tarfile.ReadError("more stands behind its end, such as another archive")


