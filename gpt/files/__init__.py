"""Files that are there whole or not at all, and locks. Nothing here needs torch but `tensors`."""

from gpt.files.atomic import (
    SUMS,
    as_json,
    differing,
    flush_to_disk,
    make_folder,
    naming,
    nests,
    read_json,
    sha256_of,
    write_atomically,
    write_json,
    write_sums,
)
from gpt.files.cache import cache_folder, kept
from gpt.files.lock import LOCK, InUse, locked, worked_in
from gpt.files.tables import separator_of

__all__ = ["LOCK", "SUMS", "InUse", "as_json", "cache_folder", "differing", "flush_to_disk",
           "kept", "locked", "make_folder", "naming", "nests", "read_json", "separator_of",
           "sha256_of", "tensors", "worked_in", "write_atomically", "write_json", "write_sums"]
