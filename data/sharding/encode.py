"""Encoding in processes: pieces go out as they come, ids come back in the same order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import NamedTuple

import numpy as np

from data.documents.split import Piece
from gpt.errors import WorkFailed
from gpt.shards import dtype_for
from gpt.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 17  # what a process encodes at once


class Encoded(NamedTuple):
    """A piece's ids, end-of-text included where a document ends, and its bytes of text."""

    ids: np.ndarray
    text_bytes: int


def encode_in_order(pieces: Iterable[Piece], tokenizer: Tokenizer,
                    workers: int) -> Generator[list[tuple[Piece, Encoded]]]:
    """Batches of pieces with their ids. Their order, and every id, is the same for any workers.

    No more batches are under way than keep the processes busy. Raises WorkFailed if one of them
    is killed.
    """
    batches, dtype = _batches(pieces), dtype_for(tokenizer.vocab_size)
    if workers == 1:
        for batch in batches:
            yield _joined(batch, _encode(tokenizer, _texts(batch)), dtype)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _start, (tokenizer,)) as pool:
        under_way: deque[tuple[list[Piece], Future[_Result]]] = deque()
        try:
            for batch in batches:
                with _holding_signals():  # submitting also starts processes
                    under_way.append((batch, pool.submit(_work, _texts(batch))))
                if len(under_way) > workers + 2:
                    done, future = under_way.popleft()
                    yield _joined(done, future.result(), dtype)
            while under_way:
                done, future = under_way.popleft()
                yield _joined(done, future.result(), dtype)
        except BrokenProcessPool as error:
            raise WorkFailed("a process that encodes was killed, perhaps for want of memory; run "
                             "the same command again to continue, with fewer workers if it "
                             "happens again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups that are worth a process's while."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_CHARACTERS // 64:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_Texts = list[tuple[str, bool, bool]]  # and whether a document starts there, and ends
_Result = tuple[bytes, list[int], list[int]]  # all ids; each text's number of ids, and of bytes
_tokenizer: Tokenizer


def _texts(batch: list[Piece]) -> _Texts:
    return [(piece.text, piece.starts, piece.ends) for piece in batch]


_LEFT_TO_THE_PARENT = [getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGHUP")
                       if hasattr(signal, name)]


@contextlib.contextmanager
def _holding_signals() -> Iterator[None]:
    """Keep signals waiting, or one could end a process that has not yet begun to ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(tokenizer: Tokenizer) -> None:
    """Make ready a process: it leaves signals to its parent, and ends when that is gone."""
    global _tokenizer
    _tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a core each
    for one in _LEFT_TO_THE_PARENT:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_PARENT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which a pool ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(texts: _Texts) -> _Result:
    return _encode(_tokenizer, texts)


def _encode(tokenizer: Tokenizer, texts: _Texts) -> _Result:
    dtype = dtype_for(tokenizer.vocab_size)
    end = np.asarray([tokenizer.end_of_text], dtype=dtype).tobytes()
    parts: list[bytes] = []
    counts, sizes = [], []
    if tokenizer.prefixes_space:  # once a document
        first = iter(tokenizer.encode_arrays([text for text, starts, _ in texts if starts]))
        behind = iter(tokenizer.encode_behind_arrays([text for text, starts, _ in texts
                                                      if not starts]))
        arrays = [next(first if starts else behind) for _, starts, _ in texts]
    else:
        arrays = tokenizer.encode_arrays([text for text, _, _ in texts])
    for (text, _, ends), ids in zip(texts, arrays, strict=True):
        parts += [ids.astype(dtype).tobytes(), end if ends else b""]
        counts.append(len(ids) + ends)
        sizes.append(len(text) if text.isascii() else len(text.encode()))
    return b"".join(parts), counts, sizes


def _joined(batch: list[Piece], result: _Result, dtype: np.dtype) -> list[tuple[Piece, Encoded]]:
    """Each piece with its share of the ids."""
    data, counts, sizes = result
    ids = np.split(np.frombuffer(data, dtype=dtype), np.cumsum(counts)[:-1])
    return [(piece, Encoded(own, size))
            for piece, own, size in zip(batch, ids, sizes, strict=True)]
