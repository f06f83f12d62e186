"""Row 8: names that lead out of a folder: `../`, absolute, symbolic links, NUL."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import safe_open

from gpt.files import as_json
from gpt.shards import read_manifest
from gpt.shards.reading import own_hash
from tests.faults.rows import hostile, runs
from tests.faults.tally import Tally
from tests.faults.warm import command

SECRET = "what lies outside is nobody's business"
Words = tuple[object, ...]


def run(short: bool, folder: Path) -> Tally:
    """Every place that a name comes from; short: every other."""
    tally = Tally()
    (folder / "in").mkdir()
    hostile.world()
    outside = folder / "secret.txt"
    outside.write_text(SECRET)
    for number, (what, arrange, words, must_fail) in enumerate(_cases(folder)):
        if short and number % 2:
            continue
        copy = hostile.copied(folder / "in" / "copy")
        arrange(copy)
        before = _around(folder, copy)
        done = command(*words, folder=copy)
        problems = []
        if _around(folder, copy) != before:
            problems.append("something outside has changed")
        if must_fail and not (done.is_one_line and done.code == 2):
            problems.append(f"code {done.code}: {done.err[-300:]!r}")
        if not must_fail and done.code not in (0, 1, 2):
            problems.append(f"code {done.code}")
        if "Traceback" in done.err:
            problems.append(f"a traceback: {done.last}")
        if SECRET in done.out + done.err or _is_taken_in(copy):
            problems.append("what lies outside is read")
        tally.expect("; ".join(problems) and f"{what}: {'; '.join(problems)}")
    return tally


def _around(folder: Path, copy: Path) -> dict[str, bytes]:
    """All that lies beside the folder of a case."""
    return {str(path): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.is_relative_to(copy)}


def _is_taken_in(copy: Path) -> bool:
    """Whether a dataset has what lies outside: tokens of bytes or characters spell it."""
    made = copy / "made"
    if not (made / "dataset.json").is_file():
        return False
    from gpt.shards import Dataset
    dataset = Dataset(made)
    return any(SECRET in dataset.tokenizer.decode(stream.read(0, len(stream)))
               for stream in (dataset.train, dataset.val))


def _cases(folder: Path) -> Iterator[tuple[str, Callable[[Path], None], Words, bool]]:
    """(what, how a world is changed, a command, whether it has to be refused)"""
    nothing = lambda copy: None  # noqa: E731
    for name in ("../../escaped", str(folder / "escaped"), "a/../../../escaped", "nul\0", "..",
                 ".", ""):
        yield f"run.name={name!r}", nothing, ("train.py", *runs.words(name, 1)), True
    yield "run.out_dir with NUL", nothing, (
        "train.py", *runs.words("new", 1, "run.out_dir=nul\0")), True
    for field in ("data", "val_data"):
        yield f"finetune.{field} with NUL", nothing, (
            "finetune.py", *hostile.finetuning("tuned"), f"finetune.{field}=nul\0"), True
    yield "out with NUL", nothing, (
        "data/prepare.py", "some.txt", "tokenizer=char", "out=nul\0"), True
    yield "a source with NUL", nothing, (
        "data/prepare.py", "nul\0", "tokenizer=char", "out=made"), True
    yield from _in_indices(folder / "weights.safetensors")
    for name in ("../../secret.txt", "../../../../../secret.txt", str(folder / "secret.txt")):
        yield from _in_folders(name)
        for ending in (".tar", ".zip"):
            yield (f"{ending} with {name}", lambda copy, name=name, ending=ending: _pack(
                copy / f"a{ending}", name), ("data/prepare.py", f"a{ending}", "tokenizer=char",
                                             "out=made"), False)
    yield "a link in a tar", lambda copy: _pack_link(copy / "a.tar", folder / "secret.txt"), (
        "data/prepare.py", "a.tar", "tokenizer=char", "out=made"), False


def _in_folders(name: str) -> Iterator[tuple[str, Callable[[Path], None], Words, bool]]:
    """Manifests that name a file outside."""
    yield (f"manifest.json with {name}", lambda copy: _in_manifest(copy, name),
           ("sample.py", "runs/run"), True)
    yield (f"dataset.json with the shard {name}", lambda copy: _in_dataset(copy, name, "shard"),
           ("train.py", *runs.words("other", 1)), True)
    yield (f"dataset.json with the file {name}", lambda copy: _in_dataset(copy, name, "file"),
           ("gpt", "verify", "data"), False)
    yield (f"adapters of {name}", lambda copy: hostile.edit(
        copy / "peft" / "adapter_config.json",
        lambda config: config.update(base_model_name_or_path=name)), ("sample.py", "peft"), True)


def _in_indices(weights: Path) -> Iterator[tuple[str, Callable[[Path], None], Words, bool]]:
    """Indices that name weights outside, which would fit."""
    for how in ("relative", "absolute"):
        yield (f"an index of ours with a {how} path", lambda copy, how=how: _in_our_index(
            copy, weights, how), ("sample.py", "runs/run"), True)
        yield (f"an index of Hugging Face's with a {how} path", lambda copy, how=how: _in_index(
            copy / "hf", weights, how), ("gpt", "import", "hf", "imported"), True)


def _in_manifest(copy: Path, name: str) -> None:
    step = hostile.checkpoint_of(copy / "runs" / "run")

    def add(manifest: dict) -> None:
        manifest["files"][name] = {"bytes": len(SECRET), "sha256": "0" * 64}

    hostile.edit(step / "manifest.json", add)


def _in_our_index(copy: Path, weights: Path, how: str) -> None:
    step = hostile.checkpoint_of(copy / "runs" / "run")
    _in_index(step, weights, how)
    shutil.copy(step / "config.json", step / "model-00001-of-00001.safetensors")  # some weights
    hostile.seal(step)


def _in_index(folder: Path, weights: Path, how: str) -> None:
    """Let the weights lie in a file outside, which an index names."""
    (folder / "model.safetensors").rename(weights)
    name = str(weights) if how == "absolute" else os.path.relpath(weights, folder)
    with safe_open(weights, "pt") as file:
        places = dict.fromkeys(file.keys(), name)
    (folder / "model.safetensors.index.json").write_text(as_json(
        {"metadata": {"total_size": 4}, "weight_map": places}))


def _in_dataset(copy: Path, name: str, where: str) -> None:
    path = copy / "data" / "dataset.json"
    manifest = read_manifest(copy / "data")
    if where == "shard":
        manifest.splits["train"].shards[0].file = name
    else:
        manifest.files[name] = "0" * 64
    manifest.sha256 = own_hash(manifest)
    path.write_text(as_json(json.loads(json.dumps(manifest.model_dump()))))


def _pack(path: Path, name: str) -> None:
    text = b"a member's own text, which is what is read\n" * 20
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text)
        return
    with tarfile.open(path, "w") as archive:
        header = tarfile.TarInfo(name)
        header.size = len(text)
        archive.addfile(header, io.BytesIO(text))


def _pack_link(path: Path, target: Path) -> None:
    _pack(path, "own.txt")
    with tarfile.open(path, "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft.txt"), (tarfile.LNKTYPE, "hard.txt")):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, str(target)
            archive.addfile(header)
