"""Writing shards: the same files however often it is interrupted, and nothing but what was said."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.shards import SplitInfo, SplitWriter, TokenStream, WriterState, dtype_for
from gpt.shards import writing as shard_writer

SEEDED = settings(max_examples=25, derandomize=True, database=None, deadline=None)
DOCUMENTS = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 300), min_size=1,
                                                           max_size=9)), max_size=12)


def write(folder: Path, documents: list[tuple[int, list[int]]], shard_tokens: int,
          breaks: frozenset[int] = frozenset(), vocab_size: int = 301) -> SplitInfo:
    """Write (source, ids) documents; before some, forget the writer and go on from its state."""
    folder.mkdir(exist_ok=True)
    writer = SplitWriter(folder, "train", vocab_size, shard_tokens)
    for number, (source, ids) in enumerate(documents):
        if number in breaks:
            state = WriterState.model_validate(writer.state().model_dump())
            writer.start_document()  # what is not in the state never happened
            writer.add(np.arange(7), 99)
            writer.abandon()
            writer = SplitWriter(folder, "train", vocab_size, shard_tokens, state)
        writer.start_source(source)
        writer.start_document()
        for part in (ids[:4], ids[4:]):
            writer.add(np.array(part, dtype=np.uint32), len(part))
    return writer.close()


def contents(folder: Path, info: SplitInfo) -> list[tuple[bytes, bytes]]:
    return [((folder / shard.file).read_bytes(),
             (folder / shard.file).with_suffix(".offsets").read_bytes()) for shard in info.shards]


@SEEDED
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 20),
       breaks=st.frozensets(st.integers(0, 11)))
def test_a_writer_that_is_interrupted_writes_the_files_of_one_that_is_not(
        documents, shard_tokens, breaks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    whole = write(folder / "whole", documents, shard_tokens)
    broken = write(folder / "broken", documents, shard_tokens, breaks)
    assert broken == whole
    assert contents(folder / "broken", broken) == contents(folder / "whole", whole)
    names = {shard.file for shard in whole.shards}
    assert {path.name for path in (folder / "whole").glob("*.bin")} == names


@SEEDED
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 20))
def test_shards_hold_the_documents_and_where_they_start(documents, shard_tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    info = write(folder, documents, shard_tokens)
    parts = contents(folder, info)
    stream = TokenStream([np.frombuffer(ids, "<u2") for ids, _ in parts],
                         [np.frombuffer(offsets, "<u8") for _, offsets in parts])
    every = [i for _, ids in documents for i in ids]
    assert stream.read(0, len(stream)).tolist() == every
    starts = np.cumsum([0, *(len(ids) for _, ids in documents)])[:-1]
    assert stream.document_starts.tolist() == starts.tolist()
    assert (info.documents, info.tokens, info.bytes) == (len(documents), len(every), len(every))
    assert all(shard.tokens <= shard_tokens for shard in info.shards)


@SEEDED
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 20))
def test_a_shard_holds_text_of_one_source(documents, shard_tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    info = write(folder, documents, shard_tokens)
    for source in range(3):
        own = [i for number, ids in documents if number == source for i in ids]
        found = [np.frombuffer(ids, "<u2") for shard, (ids, _) in zip(
            info.shards, contents(folder, info), strict=True) if shard.source == source]
        assert np.concatenate([np.empty(0), *found]).tolist() == own


@pytest.mark.parametrize(("vocab_size", "dtype"), [
    (257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (2**24, "<u4")])
def test_ids_are_two_bytes_wide_if_the_vocabulary_allows_it(vocab_size, dtype, tmp_path):
    assert dtype_for(vocab_size) == np.dtype(dtype)
    write(tmp_path, [(0, [1, vocab_size - 1])], 10, vocab_size=vocab_size)
    width = np.dtype(dtype).itemsize
    assert (tmp_path / "train-00000.bin").read_bytes() == (
        b"\1".ljust(width, b"\0") + (vocab_size - 1).to_bytes(width, "little"))


def test_an_id_that_does_not_fit_is_never_written_as_another(tmp_path):
    writer = SplitWriter(tmp_path, "train", 65_536)
    with pytest.raises(ValueError, match="token id 65536 does not fit into uint16"):
        writer.add(np.array([65_536]), 1)


def test_shards_are_as_long_as_the_format_says(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 5)
    writer = SplitWriter(tmp_path, "val", 300)
    writer.start_document()
    writer.add(np.arange(12), 12)
    assert [(s.file, s.tokens, s.documents) for s in writer.close().shards] == [
        ("val-00000.bin", 5, 1), ("val-00001.bin", 5, 0), ("val-00002.bin", 2, 0)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.offsets"])
def test_an_open_shard_that_was_changed_is_not_continued(name, damage, tmp_path):
    writer = SplitWriter(tmp_path, "train", 300, 10)
    for _ in range(5):
        writer.start_document()
        writer.add(np.arange(1, 4), 3)
    state = writer.state()
    writer.abandon()
    SplitWriter(tmp_path, "train", 300, 10, state).abandon()
    damage(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} was changed since the preparation was "
                                        "interrupted.*run the same command again to start over"):
        SplitWriter(tmp_path, "train", 300, 10, state)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.offsets"])
def test_a_finished_shard_that_went_is_noticed_at_once(name, damage, tmp_path):
    writer = SplitWriter(tmp_path, "train", 300, 10)
    writer.start_document()
    writer.add(np.arange(15), 15)
    state = writer.state()
    writer.abandon()
    damage(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} was changed"):
        SplitWriter(tmp_path, "train", 300, 10, state)


def test_a_full_disk_is_an_error_that_names_the_file():
    folder = Path("/dev/full")
    if not folder.exists():
        pytest.skip("this system has no /dev/full, a file that is always full")
    file = shard_writer._HashedFile.__new__(shard_writer._HashedFile)
    file.path = Path("out/train-00000.bin")
    file._file = folder.open("r+b", buffering=0)
    file._gathered, file._gathered_bytes = [], 0
    with pytest.raises(OSError, match="No space left") as caught:
        file.write(b"0" * shard_writer._GATHER_BYTES)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "out/train-00000.bin")
