"""Writing token shards: one stream per split, in order, so that it can be continued after a crash.

A writer's `state()` says what is safely on disk. A new writer that is given this state cuts the
files back to it and goes on, to the same bytes as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from gpt.errors import UserError
from gpt.files import flush_to_disk, naming
from gpt.shards.reading import ShardInfo, Split, SplitInfo, dtype_for, offsets_file

SHARD_TOKENS = 100_000_000  # 200 MB as uint16
_OFFSET = np.dtype("<u8")
_GATHER_BYTES = 1 << 18


class WriterState(BaseModel):
    """What of a split is on disk: finished shards, and how far the open one has come."""

    model_config = ConfigDict(extra="forbid")

    finished: list[ShardInfo] = []
    tokens: int = 0  # in the open shard
    documents: int = 0  # that start in the open shard
    source: int | None = None  # of the open shard
    sha256: str | None = None  # of the open shard so far
    offsets_sha256: str | None = None
    bytes: int = 0  # of text, in the whole split


class SplitWriter:
    """Writes one split's stream as shards, holding no more than one piece of it in memory.

    Raises UserError if the files that a state describes are not there as it says.
    """

    def __init__(self, folder: Path, split: Split, vocab_size: int,
                 shard_tokens: int | None = None, state: WriterState | None = None):
        state = state or WriterState()
        self.folder, self.split = folder, split
        self.dtype = dtype_for(vocab_size)
        self.shard_tokens = shard_tokens or SHARD_TOKENS
        self.bytes = state.bytes
        self._finished = list(state.finished)
        for shard in self._finished:
            _check_size(folder / shard.file, shard.tokens * self.dtype.itemsize)
            _check_size(folder / offsets_file(shard), shard.documents * _OFFSET.itemsize)
        self._open_shard(state)

    @property
    def tokens(self) -> int:
        """Ids written so far."""
        return sum(shard.tokens for shard in self._finished) + self._tokens

    @property
    def documents(self) -> int:
        """Documents begun so far."""
        return sum(shard.documents for shard in self._finished) + self._documents

    def _open_shard(self, state: WriterState) -> None:
        """Begin a shard, or go on with one that holds what the state says."""
        path = self.folder / f"{self.split}-{len(self._finished):05d}.bin"
        self._source, self._tokens, self._documents = state.source, state.tokens, state.documents
        self._ids = _HashedFile(path, state.tokens * self.dtype.itemsize, state.sha256)
        self._offsets = _HashedFile(path.with_suffix(".offsets"),
                                    state.documents * _OFFSET.itemsize, state.offsets_sha256)

    def start_source(self, source: int) -> None:
        """Put what follows into shards of its own: for mixtures, whose parts are read apart."""
        if self._tokens and self._source != source:
            self._next_shard()
        self._source = source

    def start_document(self) -> None:
        """Note that a document begins here."""
        if self._tokens == self.shard_tokens:
            self._next_shard()
        self._offsets.write(np.asarray(self._tokens, dtype=_OFFSET).tobytes())
        self._documents += 1

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        """Append ids that stand for `text_bytes` bytes of text."""
        self.bytes += text_bytes
        while len(ids):
            if self._tokens == self.shard_tokens:
                self._next_shard()
            part = ids[:self.shard_tokens - self._tokens]
            if part.dtype != self.dtype and part.max() > np.iinfo(self.dtype).max:
                raise ValueError(f"token id {part.max()} does not fit into {self.dtype}")
            self._ids.write(part.astype(self.dtype, copy=False).tobytes())
            self._tokens += len(part)
            ids = ids[len(part):]

    def _next_shard(self) -> None:
        """Another shard of the same source."""
        self._close_shard()
        self._open_shard(WriterState(source=self._source))

    def _close_shard(self) -> None:
        for file in (self._ids, self._offsets):
            file.flush()
            file.close()
        self._finished.append(ShardInfo(
            file=self._ids.path.name, tokens=self._tokens, documents=self._documents,
            source=self._source, sha256=self._ids.sha256, offsets_sha256=self._offsets.sha256))

    def state(self) -> WriterState:
        """Bring everything to the disk, and say what is there."""
        for file in (self._ids, self._offsets):
            file.flush()
        return WriterState(
            finished=list(self._finished), tokens=self._tokens, documents=self._documents,
            source=self._source, sha256=self._ids.sha256, offsets_sha256=self._offsets.sha256,
            bytes=self.bytes)

    def close(self) -> SplitInfo:
        """Finish the last shard and describe the split."""
        self._close_shard()
        return SplitInfo(documents=sum(shard.documents for shard in self._finished),
                         tokens=sum(shard.tokens for shard in self._finished),
                         bytes=self.bytes, shards=self._finished)

    def abandon(self) -> None:
        """Close the files as they are; what does not fit on the disk is lost."""
        for file in (self._ids, self._offsets):
            with contextlib.suppress(OSError):
                file.close()


class _HashedFile:
    """A file that is appended to, and the hash of what it holds."""

    def __init__(self, path: Path, size: int, sha256: str | None):
        """Open a file at a size. sha256: what it then hashes to; None for an empty one."""
        self.path, self._hash = path, hashlib.sha256()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        with naming(path):
            path.touch()
            self._file = path.open("r+b")
            self._file.truncate(size)  # one that is shorter grows, and hashes to something else
            while block := self._file.read(1 << 20):
                self._hash.update(block)
        if sha256 is not None and sha256 != self.sha256:
            self._file.close()
            raise _damaged(path)

    @property
    def sha256(self) -> str:
        """Of everything up to the last flush, as hexadecimal text."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append. Small pieces are gathered: each write and each hash has its price."""
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= _GATHER_BYTES:
            self._write_gathered()

    def _write_gathered(self) -> None:
        data = b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        with naming(self.path):
            self._file.write(data)
        self._hash.update(data)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._write_gathered()
        with naming(self.path):
            self._file.flush()
            flush_to_disk(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_size(path: Path, size: int) -> None:
    if not path.is_file() or path.stat().st_size != size:
        raise _damaged(path)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} was changed since the preparation was interrupted, so it cannot be "
                     "continued; run the same command again to start over")
