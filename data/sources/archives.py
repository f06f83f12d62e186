"""The members of an archive, tar or zip, as files: read where they lie, one after the other.

Nothing is unpacked, and no name of a member is ever a path: it is what a document is called.
"""

from __future__ import annotations

import contextlib
import io
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from data.recipe import Source
from data.sources.bad_text import BadText
from data.sources.files import File, described, is_known, is_wanted, tell_left_out
from data.sources.streams import BrokenFile, open_archive
from data.sources.tar import Entry, Tar, damage_is_told
from gpt.errors import UserError


def members(archive: File, source: Source, bad_text: BadText,
            left_out: Counter[str]) -> Iterator[File]:
    """The members that have text, in order, as files. Each can be opened until the next is asked.

    left_out: what is counted of the others, by suffix. An archive that is damaged gives what stands
    before, and is bad text from there on.
    """
    number = -1
    try:
        with contextlib.closing(_READERS[archive.format](archive)) as reader:
            for number, entry in enumerate(reader.entries()):
                path = _plain(entry.name)
                if entry.kind == "folder" or not _is_visible(path):
                    continue
                if entry.kind != "file" or not is_known(path):
                    left_out[entry.kind if entry.kind != "file" else
                             PurePosixPath(path).suffix or "without suffix"] += 1
                    continue
                member = _member(archive, path, entry, source, reader, number)
                if entry.is_encrypted:
                    bad_text.skipped(member.path, 1, "it is encrypted")
                else:
                    yield member
    except BrokenFile as error:
        bad_text.skipped(archive.path, number + 2, str(error))


def tell_members_left_out(archive: File, left_out: Counter[str]) -> None:
    """Say how many members have no known suffix, if there are any."""
    tell_left_out(left_out, archive.path, "unpack it, and a glob takes any")


def _plain(name: str) -> str:
    """A member's name without what only a path would need: `/` at its start, and `.`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_visible(path: str) -> bool:
    return all(part == ".." or is_wanted(part) for part in path.split("/"))


def _member(archive: File, path: str, entry: Entry, source: Source, reader: Tar | _Zip,
            number: int) -> File:
    name = path if _is_source(archive, source) else f"{archive.name}/{path}"
    file = described(f"{archive.path}/{path}", name, entry.size, source, archive.source)
    if file.format == "parquet":
        raise UserError(f"{file.path}: parquet is read from both ends, and a member of an archive "
                        "from its start alone; unpack the archive, and name the folder")
    return replace(file, opener=lambda: _Member(archive.path, lambda: reader.open(number),
                                                reader.position))


def _is_source(archive: File, source: Source) -> bool:
    """Whether it is what the source names: then names start inside it, as inside a folder."""
    path = re.split("[?#]", source.path)[0] if "://" in source.path else source.path
    return PurePosixPath(path).name == archive.name


class _Member(io.RawIOBase):
    """The bytes of a member, opened when they are first asked for.

    Its position is that of the archive, as stored, which is what a Meter wants to know.
    """

    def __init__(self, path: str, opened: Callable[[], Any], position: Callable[[], int]):
        self._path, self._opened, self._position = path, opened, position
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with damage_is_told(self._path):
            if self._stream is None:
                self._stream = self._opened()
            data = self._stream.read1(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def tell(self) -> int:
        return self._position()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()


class _Zip:
    """Members of a zip archive, which lists them at its end."""

    def __init__(self, archive: File):
        self._closing = contextlib.ExitStack()
        self._raw, _ = self._closing.enter_context(open_archive(archive))
        with self._closing, damage_is_told(archive.path):
            self._zip = zipfile.ZipFile(self._raw)
            self._closing = self._closing.pop_all()
        self._infos = self._zip.infolist()

    def entries(self) -> Iterator[Entry]:
        """What the archive says of each member."""
        for info in self._infos:
            yield Entry(info.filename, info.file_size, _kind(info), bool(info.flag_bits & 1))

    def open(self, number: int) -> Any:
        """A member's bytes."""
        return self._zip.open(self._infos[number])

    def position(self) -> int:
        """How far the archive is read."""
        return int(self._raw.tell())

    def close(self) -> None:
        """Close the file."""
        self._closing.close()


def _kind(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where no Unix wrote it
    if info.filename.endswith("/"):  # is_dir raises IndexError for a name without a letter
        return "folder"
    return "link" if kind == stat.S_IFLNK else "file" if kind in (0, stat.S_IFREG) else "device"


_READERS: dict[str, Callable[[File], Tar | _Zip]] = {"tar": Tar, "zip": _Zip}
