"""The token-shard format, and the files it is written with: whole, named by hash, verified."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.__main__ import main as command
from gpt.errors import UserError
from gpt.files import flush_to_disk, read_json, sha256_of, write_atomically, write_json
from gpt.shards import (
    Dataset,
    Manifest,
    SourceInfo,
    SplitWriter,
    TokenizerInfo,
    TokenStream,
    is_dataset,
    read_manifest,
    verify_dataset,
    write_manifest,
)
from gpt.tokenizer import END_OF_TEXT, RankTokenizer, build_tokenizer

SEEDED = settings(max_examples=60, derandomize=True, database=None, deadline=None)
DOCUMENTS = {"train": [b"first document", b"second", b"x", b"the fourth one"],
             "val": [b"held out", b"also"]}


def write_dataset(folder: Path, shard_tokens: int = 10**6) -> Dataset:
    """DOCUMENTS as bytes, in shards of the given size."""
    tokenizer = build_tokenizer("byte")
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer")
    splits = {}
    for split, documents in DOCUMENTS.items():
        writer = SplitWriter(folder, split, tokenizer.vocab_size, shard_tokens)
        for text in documents:
            writer.start_document()
            writer.add(np.array([*tokenizer.encode_bytes(text), tokenizer.end_of_text]), len(text))
        splits[split] = writer.close()
    info = TokenizerInfo(spec="byte", sha256=tokenizer.fingerprint,
                         vocab_size=tokenizer.vocab_size)
    (folder / "bad_text.jsonl").write_text('{"file": "a"}\n')
    names = ["bad_text.jsonl", "tokenizer/encoding.json", "tokenizer/ranks.tiktoken"]
    write_manifest(folder, Manifest(
        format_version=1, name="tiny", tokenizer=info, dtype="uint16", splits=splits,
        recipe={"tokenizer": "byte", "min": 1e-07}, sources=[SourceInfo(path="é", weight=1e-05)],
        bad_text={"skipped": 1}, files={name: sha256_of(folder / name) for name in names}))
    return Dataset(folder)


def stream_of(split: str) -> list[int]:
    return [i for text in DOCUMENTS[split] for i in [*text, 256]]


def edit_manifest(folder: Path, edit) -> None:
    """Change dataset.json behind the toolkit's back."""
    value = json.loads((folder / "dataset.json").read_text())
    edit(value)
    (folder / "dataset.json").write_text(json.dumps(value))


def flip_bit(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_dataset_reads_back_as_documents_separated_by_end_of_text(tmp_path):
    dataset = write_dataset(tmp_path / "d")
    for split, stream in (("train", dataset.train), ("val", dataset.val)):
        assert stream.read(0, len(stream)).tolist() == stream_of(split)
        info = dataset.manifest.splits[split]
        assert (info.documents, info.tokens, info.bytes) == (
            len(DOCUMENTS[split]), len(stream_of(split)), sum(map(len, DOCUMENTS[split])))


@pytest.mark.parametrize("shard_tokens", [1, 2, 3, 7, 15, 16, 100])
def test_several_shards_hold_the_stream_of_one(shard_tokens, tmp_path):
    dataset = write_dataset(tmp_path / "d", shard_tokens)
    shards = dataset.manifest.splits["train"].shards
    assert [shard.file for shard in shards] == [f"train-{i:05d}.bin" for i in range(len(shards))]
    assert len(shards) == -(-len(stream_of("train")) // shard_tokens)
    assert all(shard.tokens == shard_tokens for shard in shards[:-1])
    assert dataset.train.read(0, len(dataset.train)).tolist() == stream_of("train")
    assert verify_dataset(tmp_path / "d") == []


@pytest.mark.parametrize("shard_tokens", [5, 10**6])
def test_every_read_gives_the_same_tokens_wherever_shards_end(shard_tokens, tmp_path):
    stream = write_dataset(tmp_path / "d", shard_tokens).train
    expected = stream_of("train")
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            found = stream.read(start, stop)
            assert found.dtype == np.int64 and found.tolist() == expected[start:stop]


@SEEDED
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1, max_size=6),
       st.data())
def test_a_stream_is_the_concatenation_of_its_parts(parts, data):
    whole = [i for part in parts for i in part]
    stream = TokenStream([np.array(part, dtype="<u2") for part in parts])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert len(stream) == len(whole)
    assert stream.read(start, stop).tolist() == whole[start:stop]


def test_a_stream_without_parts_is_empty():
    assert len(TokenStream([])) == 0
    assert TokenStream([]).read(0, 0).tolist() == []


def document_starts(folder: Path) -> tuple[list[int], list[int]]:
    """(starts in the whole stream, starts in their shards), from the .offsets files."""
    whole, inside, before = [], [], 0
    for shard in read_manifest(folder).splits["train"].shards:
        path = (folder / shard.file).with_suffix(".offsets")
        offsets = np.frombuffer(path.read_bytes(), dtype="<u8").tolist()
        assert len(offsets) == shard.documents
        whole += [before + offset for offset in offsets]
        inside += offsets
        before += shard.tokens
    return whole, inside


STARTS = [0, 15, 22, 24]  # of DOCUMENTS["train"], each followed by one separator


@pytest.mark.parametrize("shard_tokens", [7, 16, 10**6])
def test_offsets_say_where_documents_start(shard_tokens, tmp_path):
    write_dataset(tmp_path / "d", shard_tokens)
    assert document_starts(tmp_path / "d")[0] == STARTS


def test_a_document_that_starts_with_a_shard_is_listed_in_that_shard(tmp_path):
    write_dataset(tmp_path / "d", 15)
    whole, inside = document_starts(tmp_path / "d")
    assert whole == STARTS and inside == [start % 15 for start in STARTS]


def test_recorded_hashes_are_those_of_the_files(tmp_path):
    write_dataset(tmp_path / "d", 10)
    for shard in read_manifest(tmp_path / "d").splits["train"].shards:
        data = (tmp_path / "d" / shard.file).read_bytes()
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
        offsets = (tmp_path / "d" / shard.file).with_suffix(".offsets").read_bytes()
        assert shard.offsets_sha256 == hashlib.sha256(offsets).hexdigest()


@pytest.mark.parametrize("name", [
    "train-00001.bin", "val-00000.bin", "train-00000.offsets", "dataset.json", "bad_text.jsonl",
    "tokenizer/encoding.json"])
def test_a_flipped_bit_is_found_and_its_file_named(name, tmp_path):
    write_dataset(tmp_path / "d", 10 if name.endswith(("bin", "offsets")) else 100)
    path = tmp_path / "d" / name
    assert verify_dataset(tmp_path / "d") == []
    for at in range(path.stat().st_size):
        bit = 5 if path.read_bytes()[at] == ord("e") else at % 8  # 1e-05 and 1E-05 are one number
        flip_bit(path, at, bit)
        assert verify_dataset(tmp_path / "d") == [name], (at, bit)
        flip_bit(path, at, bit)
    assert verify_dataset(tmp_path / "d") == []


@pytest.mark.parametrize("name", ["encoding.json", "ranks.tiktoken"])
def test_a_damaged_tokenizer_is_found_and_named(name, tmp_path):
    write_dataset(tmp_path / "d")
    flip_bit(tmp_path / "d/tokenizer" / name, 20)
    assert verify_dataset(tmp_path / "d") == [f"tokenizer/{name}"]
    with pytest.raises(UserError, match="tokenizer"):
        _ = Dataset(tmp_path / "d").tokenizer


def test_verify_says_what_it_found_and_leaves_with_code_one(tmp_path, capsys):
    write_dataset(tmp_path / "d")
    command(["verify", str(tmp_path / "d")])
    assert capsys.readouterr().out == f"{tmp_path / 'd'}: sound\n"
    flip_bit(tmp_path / "d/val-00000.bin", 3)
    flip_bit(tmp_path / "d/bad_text.jsonl", 3)
    with pytest.raises(SystemExit, match="1"):
        command(["verify", str(tmp_path / "d")])
    assert capsys.readouterr().out == f"{tmp_path / 'd'}: bad_text.jsonl; val-00000.bin\n"
    with pytest.raises(UserError, match="is no dataset, run or checkpoint"):
        command(["verify", str(tmp_path)])


@pytest.mark.parametrize("name", [
    "../x", "/etc/passwd", "a/../x", "tokenizer/../../x", "", ".", "a//b", "x\n", "a\0b",
    "tokenizer/.x", "~/x", "a\\b"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name, tmp_path):
    folder = tmp_path / "d"
    manifest = write_dataset(folder).manifest
    (tmp_path / "x").write_text("outside")
    hostile = manifest.model_copy(update={"files": {name: "0" * 64}})
    write_manifest(folder, hostile)  # its own hash fits
    with pytest.raises(UserError, match=r"dataset\.json: files\."):
        Dataset(folder)
    assert verify_dataset(folder) == ["dataset.json"]


def test_a_missing_file_is_found_and_named(tmp_path):
    write_dataset(tmp_path / "d")
    (tmp_path / "d/val-00000.bin").unlink()
    (tmp_path / "d/train-00000.offsets").unlink()
    assert verify_dataset(tmp_path / "d") == ["train-00000.offsets", "val-00000.bin"]
    with pytest.raises(UserError, match=r"train-00000\.offsets is missing: 0 of \d+ bytes are "
                                        "there; prepare the dataset again"):
        _ = Dataset(tmp_path / "d").tokenizer


@pytest.mark.parametrize("change", [lambda data: data[:-2], lambda data: data[:-1],
                                    lambda data: b"", lambda data: data + b"\0\0"])
def test_a_shard_of_another_length_is_refused_on_opening(change, tmp_path):
    write_dataset(tmp_path / "d")
    path = tmp_path / "d/train-00000.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: \d+ of \d+ bytes are there"):
        Dataset(tmp_path / "d")
    assert verify_dataset(tmp_path / "d") == ["train-00000.bin"]


def test_another_tokenizer_in_the_folder_is_refused(tmp_path):
    write_dataset(tmp_path / "d")
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256}
    RankTokenizer("other", ranks, ".", {END_OF_TEXT: 257}).save(tmp_path / "d/tokenizer")
    with pytest.raises(UserError, match="its tokenizer is not the one its tokens were made with; "
                                        "prepare the dataset again"):
        _ = Dataset(tmp_path / "d").tokenizer
    assert set(verify_dataset(tmp_path / "d")) == {"tokenizer/encoding.json",
                                                   "tokenizer/ranks.tiktoken"}


def test_the_fingerprint_changes_with_any_token(tmp_path, monkeypatch):
    before = write_dataset(tmp_path / "a").manifest.fingerprint
    assert write_dataset(tmp_path / "b").manifest.fingerprint == before
    monkeypatch.setitem(DOCUMENTS, "val", [b"held out", b"alsO"])
    assert write_dataset(tmp_path / "c").manifest.fingerprint != before


def test_a_folder_is_a_dataset_once_its_manifest_is_there(tmp_path):
    write_dataset(tmp_path / "d")
    (tmp_path / "d/dataset.json").unlink()
    assert not is_dataset(tmp_path / "d")
    with pytest.raises(UserError, match=r"there is no dataset in .*: it has no dataset\.json; "
                                        r"prepare one with `python data/prepare\.py"):
        Dataset(tmp_path / "d")


def first_shard(value: dict) -> dict:
    return value["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(("edit", "where"), [
    (lambda v: v.update(format_version=2), "format_version: "),
    (lambda v: v.pop("dtype"), "dtype: "),
    (lambda v: v.update(dtype="float32"), "dtype: "),
    (lambda v: v.update(surprise=1), "surprise: "),
    (lambda v: v["splits"].update(test=v["splits"]["val"]), r"splits\.test"),
    (lambda v: v["splits"]["val"].update(tokens=-1), r"splits\.val\.tokens: "),
    (lambda v: v["splits"]["val"].update(bytes=10**4000), r"splits\.val\.bytes: "),
    (lambda v: v["sources"][0].update(weight=float("inf")), r"sources\.0\.weight: "),
    (lambda v: v["files"].update({"x" * 300: "0"}), r"files\.x{300}\.\[key\]: "),
    (lambda v: first_shard(v).update(file="../train-00000.bin"), r"splits\.train\.shards\.0\.file"),
    (lambda v: first_shard(v).update(file="/etc/passwd"), r"splits\.train\.shards\.0\.file"),
    (lambda v: first_shard(v).update(file="train-00000.bin\n"), r"splits\.train\.shards\.0\.file"),
    (lambda v: first_shard(v).update(tokens=float("nan")), r"splits\.train\.shards\.0\.tokens")])
def test_a_manifest_that_is_none_is_refused_with_the_field(edit, where, tmp_path):
    write_dataset(tmp_path / "d")
    edit_manifest(tmp_path / "d", edit)
    with pytest.raises(UserError, match=rf"dataset\.json: {where}.*; prepare the dataset again"):
        Dataset(tmp_path / "d")


def test_a_recipe_of_any_depth_is_one_error(tmp_path):
    write_dataset(tmp_path / "d")
    sound = (tmp_path / "d/dataset.json").read_text()
    told = set()
    for depth in (90, 99, 100, 101, 900, 950, 1000, 100_000):
        nested = "[" * depth + "]" * depth
        (tmp_path / "d/dataset.json").write_text(
            sound.replace('"min": 1e-07', f'"min": {nested}'))
        with pytest.raises(UserError) as caught:
            read_manifest(tmp_path / "d")
        told.add(str(caught.value).partition("dataset.json")[2][:16])
    assert told >= {" is damaged: its", " is damaged: it "}  # another hash; too deep


def test_a_manifest_that_lies_about_sizes_is_refused(tmp_path):
    manifest = write_dataset(tmp_path / "d").manifest
    manifest.splits["train"].shards[0].tokens = 2**60
    write_manifest(tmp_path / "d", manifest)
    with pytest.raises(UserError, match=rf"damaged: \d+ of {2**61} bytes are there"):
        Dataset(tmp_path / "d")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_manifest_without_a_split_is_refused(split, tmp_path):
    write_dataset(tmp_path / "d")
    edit_manifest(tmp_path / "d", lambda value: value["splits"].pop(split))
    with pytest.raises(UserError):
        Dataset(tmp_path / "d")


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_json_that_is_damaged_is_one_error(contents, tmp_path):
    path = tmp_path / "value.json"
    path.write_bytes(contents)
    with pytest.raises(UserError, match=r"value\.json is damaged: it is not valid JSON"):
        read_json(path)


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file or directory"):
        read_json(tmp_path / "none.json")


def test_json_is_written_for_people_and_reads_back(tmp_path):
    value = {"é": [1, 2.5, None, "a\nb"]}
    write_json(tmp_path / "value.json", value)
    assert "é" in (tmp_path / "value.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "value.json") == value


@pytest.mark.parametrize("data", ["new é", b"new \xff"])
def test_writing_replaces_the_file_and_leaves_nothing_beside_it(data, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_files_and_folders_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(
        sorted(path.name for path in tmp_path.iterdir())))
    write_atomically(tmp_path / "file", "new")
    assert seen == [[f"file.tmp-{os.getpid()}"], ["file"]]
    flush_to_disk(tmp_path)
    assert len(seen) == 3


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    data = bytes(range(251)) * 5_000  # more than one of the blocks it is read in
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("place, value", [
    (0, 1), (1, 0), (2, 15), (3, 39), (3, 2**63), (2, 2**63 + 15), (2, 2**64 - 1)])
def test_a_damaged_list_of_starts_is_refused(place, value, tmp_path):
    write_dataset(tmp_path / "d", 10**6)
    path = tmp_path / "d" / "train-00000.offsets"
    starts = np.fromfile(path, "<u8")
    starts[place] = value
    starts.tofile(path)
    with pytest.raises(UserError, match="train: its list of where documents start is damaged"):
        _ = Dataset(tmp_path / "d").train.document_starts
