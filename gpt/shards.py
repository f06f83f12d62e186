"""Token shards: how a tokenized corpus lies on disk.

A dataset folder holds, for each split ("train", "val"), shards `SPLIT-00000.bin …` of little-endian
ids (uint16, or uint32 for vocabularies over 65,536) that form one stream, every document followed
by the end-of-text token. Beside each shard, `SPLIT-00000.offsets` lists where documents start in it
(uint64, in tokens). `dataset.json` is written last: a folder without it is no dataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpt.errors import UserError
from gpt.files import flush_to_disk, read_json, sha256_of, write_json
from gpt.tokenizer import Tokenizer

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
SHARD_TOKENS = 100_000_000  # 200 MB as uint16


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ShardInfo(_Record):
    """One shard file."""

    file: str = Field(pattern=r"^(train|val)-\d{5}\.bin$")
    tokens: int = Field(ge=0)
    documents: int = Field(ge=0, description="documents that start in this shard")
    sha256: str
    offsets_sha256: str


class SplitInfo(_Record):
    """What one split holds. `bytes` is text before encoding, separators not counted."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)
    shards: list[ShardInfo]


class TokenizerInfo(_Record):
    """Which tokenizer the ids belong to."""

    spec: str
    sha256: str
    vocab_size: int


class Manifest(_Record):
    """The contents of dataset.json."""

    format_version: Literal[1]
    name: str
    tokenizer: TokenizerInfo
    dtype: Literal["uint16", "uint32"]
    splits: dict[Literal["train", "val"], SplitInfo]
    recipe: dict[str, Any]
    sources: list[str]
    corpus: str = Field("", description="SHA-256 of the documents' names and sizes")
    bad_text: dict[str, int] = Field(description="documents with invalid text, by what was done")

    @field_validator("splits")
    @classmethod
    def _both_splits(cls, value: Any) -> Any:
        if value.keys() != {"train", "val"}:
            raise ValueError("train and val are required")
        return value

    @property
    def fingerprint(self) -> str:
        """Changes when any token, or the tokenizer, does."""
        parts = [self.tokenizer.sha256]
        parts += [shard.sha256 for name in ("train", "val") for shard in self.splits[name].shards]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


class SplitWriter:
    """Writes one split's stream as shards, holding no more than one piece of it in memory."""

    def __init__(self, folder: Path, split: str, vocab_size: int, shard_tokens: int = SHARD_TOKENS):
        self.folder, self.split = folder, split
        self.dtype = dtype_for(vocab_size)
        self.shard_tokens = shard_tokens
        self.documents = self.tokens = self.bytes = 0
        self._shards: list[ShardInfo] = []
        self._open_shard()

    def _open_shard(self) -> None:
        self._path = self.folder / f"{self.split}-{len(self._shards):05d}.bin"
        self._file = self._path.open("wb")
        self._hash, self._in_shard = hashlib.sha256(), 0
        self._starts: list[int] = []

    def start_document(self) -> None:
        """Note that a document begins here."""
        if self._in_shard == self.shard_tokens:
            self._close_shard()
            self._open_shard()
        self._starts.append(self._in_shard)
        self.documents += 1

    def add(self, ids: Iterable[int], text_bytes: int) -> None:
        """Append tokens that stand for `text_bytes` bytes of text."""
        array = np.asarray(ids, dtype=self.dtype)
        self.bytes += text_bytes
        while len(array):
            if self._in_shard == self.shard_tokens:
                self._close_shard()
                self._open_shard()
            part = array[:self.shard_tokens - self._in_shard]
            data = part.tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._in_shard += len(part)
            self.tokens += len(part)
            array = array[len(part):]

    def _close_shard(self) -> None:
        self._file.close()
        flush_to_disk(self._path)
        offsets = self._path.with_suffix(".offsets")
        offsets.write_bytes(np.asarray(self._starts, dtype="<u8").tobytes())
        flush_to_disk(offsets)
        self._shards.append(ShardInfo(
            file=self._path.name, tokens=self._in_shard, documents=len(self._starts),
            sha256=self._hash.hexdigest(), offsets_sha256=sha256_of(offsets)))

    def close(self) -> SplitInfo:
        """Finish the last shard and describe the split."""
        self._close_shard()
        return SplitInfo(documents=self.documents, tokens=self.tokens, bytes=self.bytes,
                         shards=self._shards)


class TokenStream:
    """A split's shards as one sequence of ids, mapped rather than read."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop as int64, across shard borders."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset = int(self._starts[first])
            piece = self._parts[first][start - offset:stop - offset]
            pieces.append(piece.astype(np.int64))
            start, first = start + len(piece), first + 1
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


class Dataset:
    """A prepared folder: its manifest, tokenizer, and the token streams `train` and `val`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.tokenizer = Tokenizer.load(folder / "tokenizer")
        if self.tokenizer.fingerprint != self.manifest.tokenizer.sha256:
            raise UserError(f"{folder}: its tokenizer is not the one its tokens were made with; "
                            "prepare the dataset again")
        self.train = self._map("train")
        self.val = self._map("val")

    def _map(self, split: Literal["train", "val"]) -> TokenStream:
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        parts = []
        for shard in self.manifest.splits[split].shards:
            path = self.folder / shard.file
            size = path.stat().st_size if path.is_file() else -1
            if size != shard.tokens * dtype.itemsize:
                raise UserError(f"{path} is {'missing' if size < 0 else 'damaged'}: "
                                f"{max(size, 0)} of {shard.tokens * dtype.itemsize} bytes are "
                                "there; prepare the dataset again")
            if shard.tokens:
                parts.append(np.memmap(path, dtype=dtype, mode="r"))
        return TokenStream(parts)


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest id type that the format knows for a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def is_dataset(folder: Path) -> bool:
    """Whether a finished dataset lies in a folder."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read and validate dataset.json. Raises UserError naming the wrong field."""
    if not is_dataset(folder):
        raise UserError(f"there is no dataset in {folder}: it has no {MANIFEST}; prepare one with "
                        f"`python data/prepare.py FILE_OR_FOLDER tokenizer=bpe:8192 out={folder}`")
    try:
        manifest = Manifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / MANIFEST}: {where}: {first['msg']}; prepare the dataset "
                        "again") from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write dataset.json: from now on the folder is a dataset."""
    write_json(folder / MANIFEST, manifest.model_dump())


def verify_dataset(folder: Path) -> list[str]:
    """Compare every file with its recorded SHA-256; returns the damaged or missing ones."""
    manifest = read_manifest(folder)
    damaged = []
    for split in manifest.splits.values():
        for shard in split.shards:
            offsets = Path(shard.file).with_suffix(".offsets").name
            for name, expected in ((shard.file, shard.sha256), (offsets, shard.offsets_sha256)):
                path = folder / name
                if not path.is_file() or sha256_of(path) != expected:
                    damaged.append(name)
    try:
        intact = Tokenizer.load(folder / "tokenizer").fingerprint == manifest.tokenizer.sha256
    except UserError:
        intact = False
    return damaged if intact else [*damaged, "tokenizer/"]
