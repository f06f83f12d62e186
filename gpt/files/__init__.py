"""Files that are there whole or not at all, and locks. Nothing here needs torch but `tensors`."""

from gpt.files.atomic import (
    as_json,
    flush_to_disk,
    naming,
    read_json,
    sha256_of,
    write_atomically,
    write_json,
)
from gpt.files.lock import LOCK, InUse, locked, worked_in
from gpt.files.tables import separator_of

__all__ = ["LOCK", "InUse", "as_json", "flush_to_disk", "locked", "naming", "read_json",
           "separator_of", "sha256_of", "tensors", "worked_in", "write_atomically", "write_json"]
