"""A disk after a crash: what was flushed is there, of all else any part may be.

Calls that were recorded are replayed in memory. A file's bytes are certain once it was flushed, a
folder's names once that folder was. Of what was not, each write and each change of a name may be on
disk or not, whatever came before or after it, and a write may be there in part. A rename inside one
folder happens or does not. Source: Pillai et al. 2014, "All File Systems Are Not Created Equal",
section 2; POSIX promises no more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.failing_calls import Call

Keeps = Callable[[], bool]  # whether something that was never flushed is there
Tears = Callable[[int], int]  # how many bytes of a write are


@dataclass
class File:
    """Bytes that are certain, and what was done since: (offset, data), or (size, None)."""

    certain: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def after(self, keeps: Keeps, tears: Tears) -> bytes:
        """What a crash leaves."""
        content = bytearray(self.certain)
        for at, data in self.since:
            if not keeps():
                continue
            if data is None:
                content = content[:at].ljust(at, b"\0")
                continue
            data = data[:tears(len(data))]
            content = content.ljust(at, b"\0")
            content[at:at + len(data)] = data
        return bytes(content)

    def flush(self) -> None:
        """All is certain."""
        self.certain, self.since = self.after(lambda: True, lambda size: size), []


@dataclass
class Folder:
    """Names that are certain, and changes since: what each name stands for (None: nothing)."""

    certain: dict[str, File | Folder] = field(default_factory=dict)
    since: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def names(self, keeps: Keeps = lambda: True) -> dict[str, File | Folder]:
        """The entries that a crash leaves."""
        there: dict[str, File | Folder | None] = dict(self.certain)
        for change in self.since:
            if keeps():
                there.update(change)
        return {name: entry for name, entry in there.items() if entry is not None}

    def flush(self) -> None:
        """All names are certain."""
        self.certain, self.since = self.names(), []


class Disk:
    """A folder, and what calls do to it."""

    def __init__(self, root: Path):
        self._root, self._top = os.path.realpath(root), _read(Path(root))

    def apply(self, call: Call) -> None:
        """One call that came to its end."""
        folder, name = self._place(call.path)
        if folder is None:
            return
        there = folder.names().get(name) if name else folder
        if call.kind == "open":
            self._open(folder, name, there, call.number)
        elif call.kind == "mkdir":
            folder.since.append({name: Folder()})
        elif call.kind == "unlink":
            folder.since.append({name: None})
        elif call.kind == "fsync" and there is not None:
            there.flush()
        elif call.kind == "rename":
            self._rename(folder, name, call.other)
        elif isinstance(there, File):
            there.since.append((call.number, call.data if call.kind == "write" else None))

    def _open(self, folder: Folder, name: str, there: File | Folder | None, flags: int) -> None:
        if there is None and flags & os.O_CREAT:
            folder.since.append({name: File()})
        elif isinstance(there, File) and flags & os.O_TRUNC:
            there.since.append((0, None))

    def _rename(self, folder: Folder, name: str, target: str) -> None:
        to, new = self._place(target)
        moved = folder.names()[name]
        assert to is not None
        if to is folder:
            folder.since.append({name: None, new: moved})
        else:
            to.since.append({new: moved})
            folder.since.append({name: None})

    def _place(self, path: str) -> tuple[Folder | None, str]:
        """(the folder that holds it, its name there)"""
        if Path(path) == Path(self._root):
            return self._top, ""
        *parents, name = Path(path).relative_to(self._root).parts
        folder: File | Folder | None = self._top
        for parent in parents:
            folder = folder.names().get(parent) if isinstance(folder, Folder) else None
        return (folder, name) if isinstance(folder, Folder) else (None, name)

    def flushed_steps(self, path: str) -> list[int]:
        """The checkpoints in a folder that are certain: the folder was flushed, and they were."""
        folder = self._top
        for name in path.split("/"):
            folder = folder.certain.get(name, Folder())
        return [int(name[5:]) for name, entry in folder.certain.items()
                if name.startswith("step-") and name[5:].isdecimal() and isinstance(entry, Folder)]

    def crash(self, target: Path, keeps: Keeps, tears: Tears) -> None:
        """Write what a crash now would leave into a fresh folder."""
        _write(self._top, target, keeps, tears)


def _read(path: Path) -> Folder:
    return Folder({entry.name: _read(entry) if entry.is_dir() else File(entry.read_bytes())
                   for entry in path.iterdir()})


def _write(folder: Folder, target: Path, keeps: Keeps, tears: Tears) -> None:
    target.mkdir()
    for name, entry in folder.names(keeps).items():
        if isinstance(entry, Folder):
            _write(entry, target / name, keeps, tears)
        else:
            (target / name).write_bytes(entry.after(keeps, tears))


def crashes(draw: random.Random, count: int) -> Iterable[tuple[str, Keeps, Tears]]:
    """Ways in which what was not flushed is lost: all of it, nothing of it, and by chance."""
    yield "all that was not flushed is lost", lambda: False, lambda size: size
    yield "nothing is lost", lambda: True, lambda size: size
    yield "every write is torn", lambda: True, lambda size: size // 2
    for number in range(count):
        likely = draw.choice((0.2, 0.5, 0.8, 0.95))
        yield (f"chance {number}", lambda likely=likely: draw.random() < likely,
               lambda size: size if draw.random() < 0.5 else draw.randrange(size + 1))
