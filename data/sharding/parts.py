"""Preparing on many machines: each takes a share of the files, the last one joins the parts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.documents.corpus import stored_bytes
from data.sources.files import File
from gpt.errors import UserError
from gpt.files import flush_to_disk
from gpt.launcher import place
from gpt.shards import (
    SPLITS,
    Amount,
    Manifest,
    ShardInfo,
    SourceInfo,
    Split,
    SplitInfo,
    offsets_file,
    read_manifest,
)

_PART_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})")
PART = "part.json"  # a part's manifest; without dataset.json, no part is taken for a dataset


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's, as torchrun and other launchers say it."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """RANK and WORLD_SIZE, or as other launchers than torchrun say it; alone without them.
        Raises UserError if they do not fit."""
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            here = place()
            return cls(here.rank, here.world_size)
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        numbers = re.fullmatch(r"[0-9]{1,9}", rank) and re.fullmatch(r"[0-9]{1,9}", world_size)
        if not numbers or int(rank) >= int(world_size):
            raise UserError(f"RANK={rank} and WORLD_SIZE={world_size} in the environment do not "
                            "name a share: the rank counts from 0 to one below the world size")
        return cls(int(rank), int(world_size))

    def files(self, files: Sequence[File]) -> list[int]:
        """A contiguous run of the list, so that the parts in order are the whole in order.

        Cut where the bytes before a file reach the next share; by number if sizes are unknown.
        """
        weights = [file.size or 1 for file in files]
        if stored_bytes(files) is None:
            weights = [1] * len(files)
        total, before, mine = sum(weights), 0, []
        for number, weight in enumerate(weights):
            if (before + weight / 2) * self.world_size // total == self.rank:
                mine.append(number)
            before += weight
        return mine

    def folder(self, out: Path) -> Path:
        """Where this share's part goes."""
        if self.world_size == 1:
            return out
        return parts_folder(out) / f"part-{self.rank:05d}-of-{self.world_size:05d}"


def parts_folder(out: Path) -> Path:
    """Where the parts of a dataset wait for each other."""
    return out.with_name(f"{out.name}.parts")


def finished_parts(out: Path) -> list[Path]:
    """All parts of a dataset in order; empty while one is missing."""
    found: dict[int, dict[int, Path]] = {}  # by world size and rank
    for path in parts_folder(out).glob(f"*/{PART}"):
        if name := _PART_NAME.fullmatch(path.parent.name):  # and not what is still unfinished
            found.setdefault(int(name[2]), {})[int(name[1])] = path.parent
    for world_size, parts in found.items():
        if parts.keys() == set(range(world_size)):
            return [parts[rank] for rank in range(world_size)]
    return []


def merge(parts: Sequence[Path], folder: Path) -> Manifest:
    """Join parts into one folder; returns its manifest, which is not written yet.

    The shards are the parts' own, linked or copied under new numbers: the stream of the whole is
    that of the parts in order. Raises UserError if the parts do not belong together.
    """
    manifests = [read_manifest(part, PART) for part in parts]
    first = manifests[0]
    for part, manifest in zip(parts, manifests, strict=True):
        for what in ("tokenizer", "recipe", "corpus", "dtype"):
            if getattr(manifest, what) != getattr(first, what):
                raise UserError(f"{part} was made with another {what} than {parts[0]}; remove it, "
                                "and run its rank again")
        if len(manifest.sources) != len(first.sources):
            raise UserError(f"{part} lists {len(manifest.sources)} sources, and {parts[0]} "
                            f"{len(first.sources)}; remove it, and run its rank again")
    splits = {split: _joined(split, parts, manifests, folder) for split in SPLITS}
    shutil.copytree(parts[0] / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    sources = [_added([m.sources[i] for m in manifests]) for i in range(len(first.sources))]
    return first.model_copy(update={
        "splits": splits, "sources": sources, "files": {},
        "bad_text": _summed([m.bad_text for m in manifests]),
        "cleaning": _summed([m.cleaning for m in manifests])})


def _joined(split: Split, parts: Sequence[Path], manifests: Sequence[Manifest],
            folder: Path) -> SplitInfo:
    shards: list[ShardInfo] = []
    for part, manifest in zip(parts, manifests, strict=True):
        for shard in manifest.splits[split].shards:
            if shard.tokens:
                renamed = shard.model_copy(update={"file": f"{split}-{len(shards):05d}.bin"})
                _link(part / shard.file, folder / renamed.file)
                _link(part / offsets_file(shard), folder / offsets_file(renamed))
                shards.append(renamed)
    total = _amount([m.splits[split] for m in manifests])
    return SplitInfo(**total.model_dump(), shards=shards)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    flush_to_disk(target)


def _added(infos: Sequence[SourceInfo]) -> SourceInfo:
    return infos[0].model_copy(update={split: _amount([getattr(info, split) for info in infos])
                                       for split in SPLITS})


def _amount(parts: Sequence[Amount]) -> Amount:
    return Amount(documents=sum(p.documents for p in parts), tokens=sum(p.tokens for p in parts),
                  bytes=sum(p.bytes for p in parts))


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = sorted({name for count in counts for name in count})
    return {name: sum(count.get(name, 0) for count in counts) for name in names}
