"""From pieces to shards: encode in order, write, and keep a journal to continue from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.documents.corpus import Corpus, SeenTexts
from data.documents.split import Piece, SplitPlan
from data.sharding.encode import Encoded, encode_in_order
from data.sharding.journal import Journal
from data.sharding.whole import whole_documents
from data.sources.bad_text import BadText
from gpt.errors import Stopped, WorkFailed
from gpt.machine.signals import Stop, resume_command
from gpt.shards import SPLITS, SourceInfo, Split, SplitInfo, SplitWriter
from gpt.tokenizer import Tokenizer

COMMIT_SECONDS = 10.0
_SIGNAL_SECONDS = 0.2  # within which a signal to many processes has reached them all


class ShardWriting:
    """Writes files of a corpus into a folder; what a journal there holds is kept."""

    def __init__(self, corpus: Corpus, plan: SplitPlan, tokenizer: Tokenizer, folder: Path,
                 journal: Journal, seen: SeenTexts | None):
        self.recipe, self._corpus, self._plan = corpus.recipe, corpus, plan
        self._tokenizer, self._folder, self._seen = tokenizer, folder, seen
        self._journal = journal
        self._place, self.stored, self.tally = journal.place, journal.stored, journal.tally
        self.sources = [info.model_copy(deep=True) for info in journal.sources] or [
            SourceInfo(path=s.path, weight=s.weight) for s in self.recipe.sources]
        self._writers = {split: SplitWriter(folder, split, tokenizer.vocab_size,
                                            state=journal.writers.get(split)) for split in SPLITS}

    def run(self, files: Sequence[int], bar: tqdm[Any], stop: Stop) -> dict[Split, SplitInfo]:
        """Write everything that is not written yet. Raises Stopped, with all saved, on a signal."""
        bar.update(self.stored)
        left = [number for number in files if number >= self._place[0]]
        try:
            if not self._journal.complete:
                self._write(left, bar, stop)
                self._commit(complete=True)
            return {split: writer.close() for split, writer in self._writers.items()}
        finally:
            for writer in self._writers.values():
                writer.abandon()

    def _write(self, files: Sequence[int], bar: tqdm[Any], stop: Stop) -> None:
        pieces = self._pieces(files, BadText(self.recipe.on_bad_text))
        if not self._tokenizer.encodes_in_pieces:
            pieces = whole_documents(pieces)
        encoding = encode_in_order(pieces, self._tokenizer, self.recipe.workers)
        try:
            with contextlib.closing(encoding) as batches:
                self._write_batches(batches, bar, stop)
        except WorkFailed:
            time.sleep(_SIGNAL_SECONDS)
            if stop.signal_name is None:
                raise  # otherwise what ended the process is what asks us to stop
        if stop.signal_name is not None:
            self._commit()
            raise Stopped(f"stopped by {stop.signal_name}; what is done is kept in "
                          f"{self._folder}; to continue: {resume_command()}")

    def _write_batches(self, batches: Iterator[list[tuple[Piece, Encoded]]], bar: tqdm[Any],
                       stop: Stop) -> None:
        """Write until all is written or a signal comes, and commit now and then."""
        committed = time.monotonic()
        for batch in batches:
            for piece, encoded in batch:
                self._add(piece, encoded)
                bar.update(piece.stored)
            if stop.signal_name is not None:
                return
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()

    def _pieces(self, files: Sequence[int], bad_text: BadText) -> Iterator[Piece]:
        """What is not written yet; of a source that has given all it may, no more than is read."""
        for number in files:
            for piece in self._plan.pieces(number, bad_text):
                if self._is_full(number):
                    break
                if piece.place >= self._place:
                    yield piece

    def _is_full(self, file: int) -> bool:
        """Whether the source of a file has given all the tokens that it may."""
        limit, written = self._quota(file)
        return limit is not None and written >= limit - 1

    def _quota(self, file: int) -> tuple[int | None, int]:
        """(tokens that the source of a file may give, and has given)"""
        number = self._corpus.files[file].source
        info = self.sources[number]
        return self.recipe.sources[number].max_tokens, info.train.tokens + info.val.tokens

    def _add(self, piece: Piece, encoded: Encoded) -> None:
        """Write a piece, or as much of it as its source may give."""
        file, number = piece.place
        if self._is_full(file):
            return
        encoded = self._within_quota(piece, encoded)
        source = self._corpus.files[file].source
        writer, amount = self._writers[piece.split], getattr(self.sources[source], piece.split)
        if piece.starts:
            if self.recipe.is_mixture:
                writer.start_source(source)
            writer.start_document()
        writer.add(encoded.ids, encoded.text_bytes)
        amount.documents += piece.starts
        amount.tokens += len(encoded.ids)
        amount.bytes += encoded.text_bytes
        self.tally.add(piece.tally)
        self._place, self.stored = (file, number + 1), self.stored + piece.stored

    def _within_quota(self, piece: Piece, encoded: Encoded) -> Encoded:
        """A piece cut so that its source gives no more than it may, end-of-text included.

        A document that goes on is never left with room for its end-of-text alone.
        """
        limit, written = self._quota(piece.place[0])
        if limit is None or written + len(encoded.ids) <= limit - (1 if piece.ends else 2):
            return encoded
        if piece.ends and written + len(encoded.ids) == limit:
            return encoded
        kept = encoded.ids[:limit - written - 1]
        ids = np.append(kept, self._tokenizer.end_of_text).astype(encoded.ids.dtype)
        return Encoded(ids, len(self._tokenizer.decode_bytes(kept)))

    def _commit(self, complete: bool = False) -> None:
        """Bring all that is written to the disk, and then say so in the journal."""
        if self._seen is not None:
            self._seen.save()
        Journal(key=self._journal.key, place=self._place, stored=self.stored,
                writers={split: writer.state() for split, writer in self._writers.items()},
                sources=self.sources, counts=dict(self.tally.counts),
                incidents=self.tally.incidents, complete=complete).save(self._folder)
