"""Token shards: how a tokenized corpus lies on disk.

A dataset folder holds, for each split ("train", "val"), shards `SPLIT-00000.bin …` of little-endian
ids (uint16, or uint32 for vocabularies over 65,536) that form one stream, every document followed
by the end-of-text token. Beside each shard, `SPLIT-00000.offsets` lists where documents start in it
(uint64, in tokens). `dataset.json` is written last: a folder without it is no dataset.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.files import as_json, read_json, sha256_of, write_json
from gpt.tokenizer import Tokenizer

FORMAT_VERSION = 1
MANIFEST = "dataset.json"

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


_FILE_INSIDE = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"


Count = Annotated[int, Field(ge=0, le=2**60)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ShardInfo(_Record):
    """One shard file."""

    file: str = Field(pattern=r"^(train|val)-\d{5}\.bin$")
    tokens: Count
    documents: Count = Field(description="documents that start in this shard")
    source: Count | None = Field(None, description="its place in `sources`, in a mixture")
    sha256: str
    offsets_sha256: str


class Amount(_Record):
    """How much text. `bytes` is before encoding, separators not counted."""

    documents: Count = 0
    tokens: Count = 0
    bytes: Count = 0


class SplitInfo(Amount):
    """What one split holds."""

    shards: list[ShardInfo]


class SourceInfo(_Record):
    """What one source gave to each split, and its share of training, if the recipe sets one."""

    path: str
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    train: Amount = Amount()
    val: Amount = Amount()


class TokenizerInfo(_Record):
    """Which tokenizer the ids belong to."""

    spec: str
    sha256: str
    vocab_size: Count


class Manifest(_Record):
    """The contents of dataset.json."""

    format_version: Literal[1]
    name: str
    tokenizer: TokenizerInfo
    dtype: Literal["uint16", "uint32"]
    splits: dict[Split, SplitInfo]
    recipe: dict[str, Any]
    sources: list[SourceInfo]
    corpus: str = Field("", description="SHA-256 of the files' names and sizes")
    bad_text: dict[str, int] = Field(description="documents with invalid text, by what was done")
    cleaning: dict[str, int] = Field({}, description="documents changed or left out, by step")
    files: dict[Annotated[str, Field(pattern=_FILE_INSIDE, max_length=255)], str] = Field(
        {}, description="SHA-256 of the other files in the folder")
    sha256: str = Field("", description="of this manifest, without this field")

    @field_validator("splits")
    @classmethod
    def _both_splits(cls, value: Any) -> Any:
        if value.keys() != {"train", "val"}:
            raise ValueError("train and val are required")
        return value

    @property
    def fingerprint(self) -> str:
        """Changes when any token, the tokenizer, or a weight of the mixture does."""
        parts = [self.tokenizer.sha256]
        parts += [shard.sha256 for name in SPLITS for shard in self.splits[name].shards]
        parts += [f"{source.weight}" for source in self.sources if source.weight is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


class TokenStream:
    """A split's shards as one sequence of ids, mapped rather than read.

    offsets: where documents start in each part, in tokens.
    name: what errors call it.
    """

    def __init__(self, parts: Sequence[np.ndarray], offsets: Sequence[np.ndarray] = (),
                 name: str = "the tokens"):
        # As plain arrays: numpy's class for mapped files makes each slice slower.
        self._parts, self._offsets = [np.asarray(part) for part in parts], offsets
        self._name = name
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Where each document starts, (documents,) int64, in tokens from the stream's start.

        Raises UserError for a list that can't be: the first is 0, and each is behind the last.
        """
        inside = [part.astype(np.int64) for part in self._offsets]
        sizes = map(len, self._parts)
        possible = all(not len(part) or (part[0] >= 0 and part[-1] < size
                                         and (part[1:] > part[:-1]).all())
                       for part, size in zip(inside, sizes, strict=True))
        found = [part + start for part, start in zip(inside, self._starts[:-1], strict=True)]
        starts = np.concatenate([np.empty(0, dtype=np.int64), *found])
        if not possible or (len(self) and starts[:1].tolist() != [0]):
            raise UserError(f"{self._name}: its list of where documents start is damaged; prepare "
                            "the dataset again")
        return starts

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop as int64, across shard borders."""
        first = bisect.bisect_right(self._starts, start) - 1
        pieces = []
        while start < stop:
            offset = self._starts[first]
            piece = self._parts[first][start - offset:stop - offset].astype(np.int64)
            pieces.append(piece)
            start, first = start + len(piece), first + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class WeightedStream:
    """One source of a mixture, and its share of training relative to the others."""

    weight: float
    stream: TokenStream


class Dataset:
    """A prepared folder: its manifest, tokenizer, and the token streams `train` and `val`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.train = map_shards(folder, self.manifest, "train")
        self.val = map_shards(folder, self.manifest, "val")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the tokens were made with. Raises UserError if another lies there."""
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        if tokenizer.fingerprint != self.manifest.tokenizer.sha256:
            raise UserError(f"{self.folder}: its tokenizer is not the one its tokens were made "
                            "with; prepare the dataset again")
        return tokenizer

    @property
    def mixture(self) -> list[WeightedStream]:
        """The training stream of each source that has a weight; empty if none has."""
        return [WeightedStream(source.weight, map_shards(self.folder, self.manifest, "train", i))
                for i, source in enumerate(self.manifest.sources) if source.weight is not None]


def map_shards(folder: Path, manifest: Manifest, split: Split,
               source: int | None = None) -> TokenStream:
    """A split's stream, or what one source of a mixture gave to it.

    Raises UserError for a file that is missing or of another size than the manifest says.
    """
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    shards = [shard for shard in manifest.splits[split].shards
              if source is None or shard.source == source]
    return TokenStream(
        [_mapped(folder / shard.file, dtype, shard.tokens) for shard in shards],
        [_mapped(folder / offsets_file(shard), np.dtype("<u8"), shard.documents)
         for shard in shards], f"{folder}: {split}")


def _mapped(path: Path, dtype: np.dtype, items: int) -> np.ndarray:
    """A file as an array, in the page cache rather than in our memory."""
    size, expected = path.stat().st_size if path.is_file() else -1, items * dtype.itemsize
    if size != expected:
        raise UserError(f"{path} is {'missing' if size < 0 else 'damaged'}: {max(size, 0)} of "
                        f"{expected} bytes are there; prepare the dataset again")
    return np.memmap(path, dtype=dtype, mode="r") if items else np.empty(0, dtype=dtype)


def offsets_file(shard: ShardInfo) -> str:
    """The name of the file that lists where documents start in a shard."""
    return Path(shard.file).with_suffix(".offsets").name


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest id type that the format knows for a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def is_dataset(folder: Path) -> bool:
    """Whether a finished dataset lies in a folder."""
    return (folder / MANIFEST).is_file()


def dataset_folder(name: str) -> Path:
    """The folder that data.dataset names: itself, or where a recipe's dataset is made."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        values = load_file(path).values
        given = values.get("out") if isinstance(values, dict) else None
        return Path(given if isinstance(given, str) else f"data/{path.stem}")
    return path


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """Read and validate dataset.json. Raises UserError naming the wrong field."""
    if not (folder / name).is_file():
        raise UserError(f"there is no dataset in {folder}: it has no {MANIFEST}; prepare one with "
                        f"`python data/prepare.py FILE_OR_FOLDER tokenizer=bpe:8192 out={folder}`")
    values = read_json(folder / name)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / name}: {where}: {first['msg']}; prepare the dataset "
                        "again") from error
    if manifest.sha256 != own_hash(manifest):
        raise UserError(f"{folder / name} is damaged: its own hash is {own_hash(manifest)}, "
                        f"and it says {manifest.sha256}; prepare the dataset again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Write dataset.json: from now on the folder is a dataset."""
    whole = manifest.model_copy(update={"sha256": own_hash(manifest)})
    write_json(folder / name, whole.model_dump())


def own_hash(manifest: Manifest) -> str:
    """SHA-256 of all that a manifest says, but for this hash itself."""
    said = json.dumps(manifest.model_dump(exclude={"sha256"}), sort_keys=True)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def verify_dataset(folder: Path, tell: Callable[[int], object] = lambda read: None) -> list[str]:
    """Compare every file with its recorded SHA-256; returns the damaged or missing ones.

    tell: told of the bytes that were read.
    """
    try:
        manifest = read_manifest(folder)
        intact = (folder / MANIFEST).read_bytes() == as_json(manifest.model_dump()).encode()
    except UserError:
        intact = False
    if not intact:
        return [MANIFEST]
    return [name for name, sha256 in _hashes(manifest).items()
            if not (folder / name).is_file() or sha256_of(folder / name, tell) != sha256]


def changed_file(folder: Path) -> str | None:
    """The first file of a dataset that is not what it was, in words that tell both hashes; None if
    all are."""
    for name, expected in _hashes(read_manifest(folder)).items():
        found = sha256_of(folder / name)
        if found != expected:
            return (f"{folder / name} has changed since the dataset was prepared: its SHA-256 was "
                    f"{expected[:12]}… and is {found[:12]}…; prepare the dataset again")
    return None


def _hashes(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    expected = dict(manifest.files)
    for split in manifest.splits.values():
        for shard in split.shards:
            expected[shard.file] = shard.sha256
            expected[offsets_file(shard)] = shard.offsets_sha256
    return expected
