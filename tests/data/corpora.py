"""Small corpora of every kind, and what preparations of them have in common."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data.recipe import Recipe
from data.sharding import encode, writing
from data.sources import text
from gpt.shards import Dataset, Split

WORDS = ["the", "a", "of", "Über", "naïve", "東京", "tokens", "don't", "12345", "x_y", "(so)", "…",
         "e\u0301", "🙂", "line\nbreak", "", "two\t\u3000wide", "<|endoftext|>", "was"]


def prose(words: int, seed: int) -> str:
    """Words of several scripts, in an order of the seed's."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + draw.choice(["", "", "s", "."]) for _ in range(words))


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def many_files() -> dict[str, Any]:
    for i in range(40):
        path = Path(f"corpus/{i % 3}/{i:02}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(20 + i, i), encoding="utf-8")
    return {"sources": ["corpus"], "tokenizer": "bpe:300"}


def one_file() -> dict[str, Any]:
    Path("one.txt").write_text(prose(900, 1), encoding="utf-8")
    return {"sources": ["one.txt"], "tokenizer": "bpe:280"}


def records() -> dict[str, Any]:
    write_jsonl(Path("plain.jsonl"), [prose(12, i) for i in range(60)])
    with gzip.open("packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": prose(8, 100 + i)}) + "\n" for i in range(40))
    return {"sources": ["plain.jsonl", "packed.jsonl.gz"], "tokenizer": "char"}


def mixture() -> dict[str, Any]:
    write_jsonl(Path("a.jsonl"), [prose(10, i) for i in range(50)])
    for i in range(12):
        write_jsonl(Path(f"b/{i:02}.jsonl"), [prose(6, 200 + 10 * i + j) for j in range(5)])
    return {"sources": [{"path": "a.jsonl", "weight": 3, "max_tokens": 1501},
                        {"path": "b", "weight": 0.5, "max_tokens": 1000}], "tokenizer": "byte"}


def cleaned() -> dict[str, Any]:
    texts = [prose(3 + i % 25 % 9, i % 25) for i in range(80)]
    write_jsonl(Path("c.jsonl"), texts)
    write_jsonl(Path("d.jsonl"), [prose(9, 300 + i) for i in range(20)] + texts[:10])
    return {"sources": ["c.jsonl", "d.jsonl"], "tokenizer": "bpe:270", "drop_duplicates": True,
            "min_characters": 20, "max_characters": 70, "normalize": "NFC"}


def bad_text() -> dict[str, Any]:
    lines = [json.dumps({"text": prose(9, i)}).encode() for i in range(50)]
    lines[3], lines[20] = b'{"text": "\xff bytes"}', b'{"text": 5}'
    lines[30] = b'{"text": "half \\ud800"}'
    Path("mixed").mkdir()
    Path("mixed/e.jsonl").write_bytes(b"\n".join(lines))
    Path("mixed/f.txt").write_bytes(b"first line\nnot \xff text\n")
    Path("mixed/g.txt").write_text(prose(30, 400), encoding="utf-8")
    return {"sources": ["mixed"], "tokenizer": "byte", "on_bad_text": "skip"}


def archives() -> dict[str, Any]:
    """Texts and records in a compressed tar archive and a zip archive, and some that are bad."""
    files = {f"{i % 3}/{i:02}.txt": prose(20 + i, i).encode() for i in range(24)}
    lines = "".join(json.dumps({"text": prose(9, 60 + i)}) + "\n" for i in range(20))
    files |= {"1/r.jsonl.gz": gzip.compress(lines.encode()), "2/bad.txt": b"not \xff text\n",
              "2/again.txt": files["1/01.txt"], "short.txt": b"a"}
    Path("packed").mkdir()
    write_tar(Path("packed/a.tar.gz"), files)
    with zipfile.ZipFile("packed/b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(15):
            archive.writestr(f"{i:02}.md", prose(15, 90 + i))
    return {"sources": ["packed"], "tokenizer": "bpe:290", "on_bad_text": "skip",
            "drop_duplicates": True, "min_characters": 3}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


KINDS = [many_files, one_file, records, mixture, cleaned, bad_text, archives]


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"out": "out", "workers": 1, **changes})


def in_small_pieces(patch: pytest.MonkeyPatch) -> None:
    """Many pieces and batches of a small corpus, and a journal after each."""
    patch.setattr(text, "PIECE_BYTES", 256)
    patch.setattr(encode, "BATCH_CHARACTERS", 600)
    patch.setattr(writing, "COMMIT_SECONDS", 0.0)


class PulledPlug(BaseException):
    """The machine stops, and no code of ours hears of it."""


def stop_after(batches: int, patch: pytest.MonkeyPatch) -> None:
    """Let the machine stop when this many batches are written."""
    real = encode.encode_in_order

    def some(*args: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(*args)):
            if number == batches:
                raise PulledPlug
            yield batch

    patch.setattr(writing, "encode_in_order", some)


# The same in a process of its own, which then takes arguments as data/prepare.py does.
IN_SMALL_PIECES = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from data.prepare import main
from data.sharding import encode, writing
from data.sources import text
from gpt.errors import run_command
text.PIECE_BYTES, encode.BATCH_CHARACTERS, writing.COMMIT_SECONDS = 256, 600, 0.0
"""


def folder_bytes(folder: str | Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def documents(dataset: Dataset, split: Split) -> list[bytes]:
    """The documents of a split, each between two of its offsets, without its end-of-text."""
    stream = dataset.train if split == "train" else dataset.val
    bounds = [*stream.document_starts.tolist(), len(stream)]
    assert bounds[0] == 0
    found = []
    for start, stop in pairwise(bounds):
        *ids, end = stream.read(start, stop).tolist()
        assert end == dataset.tokenizer.end_of_text and end not in ids
        found.append(dataset.tokenizer.decode_bytes(ids))
    return found


def everything(dataset: Dataset) -> list[str]:
    """All documents, sorted."""
    return sorted(document.decode() for split in ("train", "val")
                  for document in documents(dataset, split))
