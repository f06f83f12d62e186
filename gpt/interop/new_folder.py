"""An output folder that is there whole and proven, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpt.errors import UserError
from gpt.files import flush_to_disk, make_folder, write_sums


def refuse_what_is_there(out: Path) -> None:
    """Raise UserError unless a path is free, or an empty folder."""
    if out.name in ("", ".."):
        raise UserError(f"{out} is no name for a new folder; choose another one")
    is_empty_folder = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if os.path.lexists(out) and not is_empty_folder:
        raise UserError(f"{out} exists already; choose another name, or remove it first")


def _usual_mode() -> int:
    """What this user's new files may be read by."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it gets its name when everything in the block went well.

    After an error nothing is left of it. Raises UserError if the name is taken.
    """
    refuse_what_is_there(out)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    make_folder(out.parent)
    temporary.mkdir()
    try:
        yield temporary
        write_sums(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():  # safetensors writes files that nobody else may read
                path.chmod(_usual_mode())
            flush_to_disk(path)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
        flush_to_disk(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
