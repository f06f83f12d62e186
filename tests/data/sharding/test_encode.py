"""Encoding in processes: the ids and their order are the same for any number of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.documents.split import Piece
from data.sharding import encode
from data.sharding.encode import encode_in_order
from gpt.errors import UserError, WorkFailed
from gpt.tokenizer import build_tokenizer
from tests.data.corpora import prose
from tests.tiny import SHARED

SEEDED = settings(max_examples=40, derandomize=True, database=None, deadline=None)
RANKS = SHARED / "gpt2.tiktoken"


@pytest.fixture(scope="module", params=["byte", "char", "bpe:400", str(RANKS)])
def tokenizer(request):
    if request.param == str(RANKS) and not RANKS.is_file():
        pytest.skip(f"GPT-2's published ranks are not at {RANKS}")
    return build_tokenizer(request.param, [prose(300, seed) for seed in range(20)])


def pieces_of(texts: list[str]) -> list[Piece]:
    return [Piece("train", text, (0, i), ends=i % 3 == 2) for i, text in enumerate(texts)]


def encoded(pieces, tokenizer, workers) -> list[tuple[Piece, list[int], int]]:
    return [(piece, found.ids.tolist(), found.text_bytes)
            for batch in encode_in_order(iter(pieces), tokenizer, workers)
            for piece, found in batch]


@SEEDED
@given(texts=st.lists(st.text(max_size=40), max_size=20))
def test_ids_are_tiktokens_and_end_of_text_stands_where_documents_end(texts, tokenizer):
    pieces = pieces_of(texts)
    assert encoded(pieces, tokenizer, 1) == [
        (piece, tokenizer._encoding.encode_ordinary(piece.text)
         + [tokenizer.end_of_text] * piece.ends, len(piece.text.encode())) for piece in pieces]


def test_processes_change_neither_ids_nor_order(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 300)
    pieces = pieces_of([prose(1 + 7 * i % 50, i) for i in range(60)] + ["", "x"])
    alone = encoded(pieces, tokenizer, 1)
    assert len(alone) == 62
    for workers in (2, 4):
        assert encoded(pieces, tokenizer, workers) == alone
    assert encoded(pieces[::-1], tokenizer, 2) != alone


def test_no_pieces_are_no_batches():
    assert list(encode_in_order(iter(()), build_tokenizer("byte"), 3)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_is_read_than_keeps_the_processes_busy(workers, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 100)
    read = [0]

    def endless() -> Iterator[Piece]:
        while True:
            read[0] += 1
            yield Piece("train", "a" * 100, (0, read[0]))

    batches = encode_in_order(endless(), build_tokenizer("byte"), workers)
    for written in range(1, 30):
        next(batches)
        assert read[0] - written <= workers + 3
    batches.close()


def test_short_texts_are_batched_by_number_too(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 640)
    batches = list(encode_in_order(pieces_of(["a"] * 25), build_tokenizer("byte"), 1))
    assert [len(batch) for batch in batches] == [10, 10, 5]


def test_giving_up_ends_the_processes():
    before = set(multiprocessing.active_children())
    batches = encode_in_order(iter(pieces_of(["text"] * 100_000)), build_tokenizer("byte"), 2)
    next(batches)
    assert set(multiprocessing.active_children()) - before
    batches.close()
    assert set(multiprocessing.active_children()) == before


def test_a_process_that_is_killed_is_one_line(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 10)
    batches = encode_in_order(iter(pieces_of(["some text"] * 5000)), build_tokenizer("byte"), 2)
    next(batches)
    [*victims] = multiprocessing.active_children()
    os.kill(victims[0].pid, signal.SIGKILL)
    with pytest.raises(WorkFailed, match=r"a process that encodes was killed.*run the same "
                                         "command again to continue, with fewer workers"):
        list(batches)
    assert not multiprocessing.active_children()


def test_processes_leave_ctrl_c_to_their_parent(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 10)
    pieces = pieces_of(["some text"] * 300)
    batches = encode_in_order(iter(pieces), build_tokenizer("byte"), 2)
    found = list(next(batches))
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGUSR1)
        os.kill(process.pid, signal.SIGHUP)
    found += [pair for batch in batches for pair in batch]
    assert [piece for piece, _ in found] == pieces


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_wrong_with_the_text_reaches_the_user(workers):
    def broken() -> Iterator[Piece]:
        yield from pieces_of(["fine"] * 5)
        raise UserError("line 6")

    with pytest.raises(UserError, match="line 6"):
        list(encode_in_order(broken(), build_tokenizer("byte"), workers))
