"""Writing what a corpus says: exact quotas, and the same bytes after any interruption."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.documents import corpus as corpus_module
from data.documents import split
from data.preparation import prepare
from data.sharding import encode, writing
from data.sharding.journal import JOURNAL, Journal
from data.sources import bad_text as bad_text_module
from data.sources import text
from gpt.errors import Stopped, UserError, WorkFailed
from gpt.shards import Dataset, is_dataset, verify_dataset
from gpt.shards import writing as shard_writer
from tests.data.corpora import (
    KINDS,
    PulledPlug,
    bad_text,
    cleaned,
    documents,
    everything,
    folder_bytes,
    in_small_pieces,
    many_files,
    prose,
    recipe,
    stop_after,
    write_jsonl,
)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_small_pieces(monkeypatch)
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 700)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(kind, monkeypatch, capsys):
    changes = kind()
    prepare(recipe(**changes, out="whole"))
    whole = folder_bytes("whole")
    interruptions = 0
    for batches in (0, 1, 2, 4, 7):
        with monkeypatch.context() as patch:
            stop_after(batches, patch)
            try:
                prepare(recipe(**changes))
            except PulledPlug:
                interruptions += 1
                assert not Path("out").exists() and not is_dataset(Path("out.partial"))
                with pytest.raises(UserError, match="there is no dataset in"):
                    Dataset(Path("out.partial"))
        capsys.readouterr()
        dataset = prepare(recipe(**changes))
        assert ("continuing after" in capsys.readouterr().err) is (batches in range(1, 5) or
                                                                  interruptions == 5)
        assert folder_bytes("out") == whole
        assert verify_dataset(dataset.folder) == []
        shutil.rmtree("out")
    assert interruptions >= 4
    assert not list(Path().glob("out*"))


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_after_every_batch_it_comes_to_the_same_bytes(kind, monkeypatch):
    changes = kind()
    prepare(recipe(**changes, out="whole"))
    starts = 0
    while not is_dataset(Path("out")):
        starts += 1
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            with contextlib.suppress(PulledPlug):
                prepare(recipe(**changes, workers=1 + starts % 2))
    assert starts > 4
    assert folder_bytes("out") == folder_bytes("whole")


class Disk:
    """Counts what goes to the disk, and fails the n-th time; what was not flushed is then lost."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int, error: BaseException):
        self.calls, self.flushed, self.failed = 0, {}, ""
        self._fail_at, self._error = fail_at, error
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace")):
            patch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name, real):
        def call(*args):
            self.calls += 1
            if self.calls == self._fail_at:
                self.failed = name
                raise self._error
            if name == "fsync":
                status = os.fstat(args[0])
                self.flushed[status.st_ino] = status.st_size
            return real(*args)
        return call

    def lose_what_was_not_flushed(self, folder: Path) -> None:
        for path in folder.rglob("*.*") if folder.exists() else ():
            if path.is_file():
                size = self.flushed.get(path.stat().st_ino, 0)
                os.truncate(path, min(size, path.stat().st_size))


@pytest.mark.parametrize(("kind", "failure"), [
    (many_files, PulledPlug), (bad_text, lambda: OSError(5, "Input/output error"))])
def test_whichever_flush_or_rename_fails_the_next_attempt_gives_the_same_bytes(
        kind, failure, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 6000)
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 4000)
    changes = kind()
    prepare(recipe(**changes, out="whole"))
    whole, fail_at = folder_bytes("whole"), 0
    while True:
        fail_at, error = fail_at + 1, failure()
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at, error)
            try:
                prepare(recipe(**changes))
            except (PulledPlug, OSError) as caught:
                assert caught is error
                assert isinstance(error, PulledPlug) or error.filename or disk.failed == "rename"
        if not disk.failed:
            break
        if isinstance(error, PulledPlug):
            disk.lose_what_was_not_flushed(Path("out.partial"))
        if is_dataset(Path("out")):
            assert folder_bytes("out") == whole
        try:
            prepare(recipe(**changes))
        except UserError as damaged:  # what lacks is found; the attempt after that starts anew
            assert "was changed since" in str(damaged) or "tokenizer" in str(damaged)
            prepare(recipe(**changes))
        assert folder_bytes("out") == whole, fail_at
        assert sorted(path.name for path in Path().glob("out*")) == ["out"]
        shutil.rmtree("out")
    assert fail_at > 25


def interrupted(changes: dict, monkeypatch, batches: int = 3) -> None:
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(PulledPlug):
            prepare(recipe(**changes))
    assert Journal.model_validate_json(Path("out.partial/journal.json").read_text()).stored


def touch(changes: dict) -> dict:
    os.utime("corpus/0/00.txt", ns=(1, 1))
    return changes


def edit_keeping_size(changes: dict) -> dict:
    path = Path("corpus/0/00.txt")
    path.write_bytes(b"#" * len(path.read_bytes()))
    return changes


def other_recipe(changes: dict) -> dict:
    return changes | {"seed": 3}


def other_tokenizer(changes: dict) -> dict:
    return changes | {"tokenizer": "byte"}


def add_file(changes: dict) -> dict:
    Path("corpus/new.txt").write_text("a new text")
    return changes


def damage_journal(changes: dict) -> dict:
    (Path("out.partial") / JOURNAL).write_text("{")
    return changes


@pytest.mark.parametrize("change", [touch, edit_keeping_size, other_recipe, other_tokenizer,
                                    add_file, damage_journal])
def test_with_another_recipe_or_other_files_it_starts_again(change, monkeypatch, capsys):
    changes = many_files()
    interrupted(changes, monkeypatch)
    changes = change(changes)
    prepare(recipe(**changes))
    told = capsys.readouterr().err
    assert "out.partial holds the beginning of another preparation; starting again" in told
    assert "continuing after" not in told
    prepare(recipe(**changes, out="whole"))
    assert folder_bytes("out") == folder_bytes("whole")


def test_with_another_rank_file_under_the_same_name_it_starts_again(monkeypatch, capsys):
    changes = many_files() | {"tokenizer": "own.tiktoken"}
    first = prepare(recipe(**changes | {"tokenizer": "bpe:270", "out": "first"}))
    Path("own.tiktoken").write_bytes(Path("first/tokenizer/ranks.tiktoken").read_bytes())
    interrupted(changes, monkeypatch)
    prepare(recipe(**changes | {"tokenizer": "bpe:290", "out": "second"}))
    Path("own.tiktoken").write_bytes(Path("second/tokenizer/ranks.tiktoken").read_bytes())
    dataset = prepare(recipe(**changes))
    assert "starting again" in capsys.readouterr().err
    assert dataset.tokenizer.vocab_size == 290 > first.tokenizer.vocab_size


@pytest.mark.parametrize("workers", [1, 2])
def test_more_or_fewer_processes_may_continue_it(workers, monkeypatch, capsys):
    changes = many_files()
    interrupted(changes | {"workers": 3 - workers}, monkeypatch)
    prepare(recipe(**changes, workers=workers))
    assert "continuing after" in capsys.readouterr().err
    prepare(recipe(**changes, out="whole"))
    assert folder_bytes("out") == folder_bytes("whole")


def test_an_unfinished_shard_that_was_damaged_is_refused_and_then_made_anew(monkeypatch):
    changes = many_files()
    interrupted(changes, monkeypatch)
    [*_, shard] = sorted(Path("out.partial").glob("train-*.bin"))
    shard.write_bytes(b"\xff" + shard.read_bytes()[1:])
    with pytest.raises(UserError, match=f"{shard.name} was changed since the preparation"):
        prepare(recipe(**changes))
    assert not Path("out.partial").exists()
    prepare(recipe(**changes))
    prepare(recipe(**changes, out="whole"))
    assert folder_bytes("out") == folder_bytes("whole")


def test_duplicates_are_the_same_when_the_tokenizer_reads_only_beginnings(monkeypatch):
    """Trained on the beginning of each file, it sees a text of the second before the first's."""
    first = [prose(9, i) for i in range(60)]
    write_jsonl(Path("a.jsonl"), first)
    write_jsonl(Path("b.jsonl"), first[40:50] + [prose(9, 100 + i) for i in range(50)])
    monkeypatch.setattr(split, "SMALL_CORPUS", 0)
    changes = {"sources": ["a.jsonl", "b.jsonl"], "tokenizer": "bpe:270", "drop_duplicates": True,
               "tokenizer_max_bytes": 2000, "val_fraction": 0.3}
    whole = prepare(recipe(**changes, out="whole"))
    assert [s.train.documents + s.val.documents for s in whole.manifest.sources] == [60, 50]
    kept = [document.decode() for document in documents(whole, "train")]
    of_first = [t for t in first if t in kept]
    assert kept[:len(of_first)] == of_first and not set(kept[len(of_first):]) & set(first)
    interrupted(changes, monkeypatch, batches=1)
    prepare(recipe(**changes))
    assert folder_bytes("out") == folder_bytes("whole")


def test_planted_duplicates_are_counted_and_the_first_stays():
    changes = cleaned()
    dataset = prepare(recipe(**changes))
    assert dataset.manifest.cleaning["duplicates"] > 20
    found = everything(dataset)
    assert len(found) == len(set(found))
    again = prepare(recipe(**changes | {"drop_duplicates": False, "out": "all"}))
    assert "duplicates" not in again.manifest.cleaning
    assert len(everything(again)) == len(found) + dataset.manifest.cleaning["duplicates"]


def test_duplicates_of_a_source_that_is_not_read_to_its_end_are_refused():
    """How far it is read ahead depends on the number of processes."""
    for name in ("a", "b"):
        write_jsonl(Path(f"{name}.jsonl"), [prose(9, i) for i in range(40)])
    short, whole = {"path": "a.jsonl", "max_tokens": 500}, "b.jsonl"
    changes = {"tokenizer": "byte", "drop_duplicates": True, "split": "documents"}
    with pytest.raises(UserError, match="set max_tokens on the last source alone"):
        prepare(recipe(sources=[short, whole], **changes))
    assert not list(Path().glob("out*"))
    assert prepare(recipe(sources=[whole, short], **changes)).manifest.cleaning


def test_a_list_of_bad_text_ends_somewhere_and_its_count_does_not(monkeypatch):
    monkeypatch.setattr(bad_text_module, "MOST_INCIDENTS", 5)
    write_jsonl(Path("a.jsonl"), [prose(5, i) for i in range(30)])
    Path("b.jsonl").write_text("no record\n" * 40)
    dataset = prepare(recipe(sources=["a.jsonl", "b.jsonl"], tokenizer="byte", on_bad_text="skip"))
    assert dataset.manifest.bad_text == {"skipped": 40}
    assert len(Path("out/bad_text.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("told", [False, True])
def test_processes_ended_by_the_signal_that_asks_to_stop_are_no_failure(told, monkeypatch):
    """A scheduler tells every process; those that encode may be gone before we hear of it."""
    changes, real = many_files(), encode.encode_in_order

    def ended(*args: Any) -> Iterator[Any]:
        yield next(batches := real(*args))
        batches.close()
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
        raise WorkFailed("a process was killed")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "encode_in_order", ended)
        with pytest.raises(Stopped if told else WorkFailed):
            prepare(recipe(**changes))
    prepare(recipe(**changes))
    prepare(recipe(**changes, out="whole"))
    assert folder_bytes("out") == folder_bytes("whole")


SEEDED = settings(max_examples=30, derandomize=True, database=None, deadline=None)


def within(limit: int, texts: list[str]) -> list[str]:
    """What a source may give: whole documents, and at last a part of one, each with its end."""
    found, written = [], 0
    for t in texts:
        if written >= limit - 1:
            break
        found.append(t[:limit - written - 1])
        written += len(found[-1]) + 1
    return found


@SEEDED
@example(lengths=[9] * 12, limit=81, workers=1)  # after eight documents one token is left
@example(lengths=[9] * 12, limit=82, workers=1)
@given(lengths=st.lists(st.integers(1, 90), min_size=3, max_size=15), limit=st.integers(20, 500),
       workers=st.just(1))
def test_a_source_gives_exactly_what_it_may(lengths, limit, workers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("q")
    texts = [("abc " * 30)[i % 4:i % 4 + n - 1] + chr(ord("A") + i) for i, n in enumerate(lengths)]
    write_jsonl(folder / "a.jsonl", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", 16)
        patch.setattr(encode, "BATCH_CHARACTERS", 50)
        try:
            dataset = prepare(recipe(
                sources=[{"path": str(folder / "a.jsonl"), "max_tokens": limit}], tokenizer="byte",
                out=str(folder / "out"), split="documents", val_fraction=0.4, workers=workers))
        except UserError as error:
            assert "split is empty" in str(error)
            return
    assert everything(dataset) == sorted(within(limit, texts))
    total = sum(info.tokens for info in dataset.manifest.splits.values())
    everywhere = sum(lengths) + len(lengths)
    assert total in ({everywhere} if everywhere <= limit else {limit, limit - 1})
    assert total == sum(a.tokens for s in dataset.manifest.sources for a in (s.train, s.val))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_endless_source_ends_at_its_quota(workers, monkeypatch):
    def endless(file, noted, meter) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"text {number} of many"

    Path("a.jsonl").write_text("{}")
    monkeypatch.setattr(corpus_module, "read_records", endless)
    monkeypatch.setattr(split, "SMALL_CORPUS", 0)
    dataset = prepare(recipe(sources=[{"path": "a.jsonl", "max_tokens": 5000}], tokenizer="byte",
                             split="documents", workers=workers, out=f"out{workers}"))
    assert sum(info.tokens for info in dataset.manifest.splits.values()) in (4999, 5000)
    assert folder_bytes(dataset.folder) == folder_bytes("out1") if Path("out1").exists() else True
