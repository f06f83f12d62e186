"""What a model is scored on: a text as tokens, where its documents and sources begin, its hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from gpt.batches import TokenizedText
from gpt.errors import UserError
from gpt.shards import Dataset, TokenStream
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Material:
    """A text in a tokenizer's tokens.

    sources: whose documents stand one behind the other, and how many each has; empty: not known.
    training: what models of this text learned from; None: not known. sha256: of a file, or the
    fingerprint of a dataset, which changes with any of its tokens.
    """

    text: TokenizedText
    tokenizer: Tokenizer
    sha256: str
    sources: tuple[tuple[str, int], ...] = ()
    training: TokenizedText | None = None

    @classmethod
    def of_file(cls, file: Path, tokenizer: Tokenizer) -> Material:
        """A file as one document. Raises UserError if there is none, or nothing in it."""
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        tokens = tokenizer.encode_bytes(data)
        if not tokens:
            raise UserError(f"{file} is empty: there is nothing to score")
        return cls(_text([np.asarray(tokens)], tokenizer, str(file)), tokenizer,
                   hashlib.sha256(data).hexdigest())

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Material:
        """A dataset's validation split."""
        sources = tuple((each.path, each.val.documents) for each in dataset.manifest.sources)
        text = TokenizedText.validation(dataset)
        if sum(count for _, count in sources) != len(text.stream.document_starts):
            sources = ()
        return cls(text, dataset.tokenizer, dataset.manifest.fingerprint, sources,
                   TokenizedText.training(dataset))

    def in_tokens_of(self, tokenizer: Tokenizer) -> Material:
        """The same documents in another tokenizer's tokens."""
        if tokenizer.fingerprint == self.tokenizer.fingerprint:
            return self
        return replace(self, text=_translated(self.text, self.tokenizer, tokenizer),
                       tokenizer=tokenizer, training=None)

    @property
    def documents(self) -> np.ndarray:
        """The number of each token's document: (N,) int64."""
        starts = self.text.stream.document_starts
        return np.searchsorted(starts, np.arange(len(self.text)), "right") - 1

    @property
    def source_of_documents(self) -> np.ndarray:
        """The number of each document's source: (documents,) int64; empty if none is known."""
        return np.repeat(np.arange(len(self.sources)), [count for _, count in self.sources])


def _translated(text: TokenizedText, ours: Tokenizer, theirs: Tokenizer) -> TokenizedText:
    bounds = [*text.stream.document_starts.tolist(), len(text)]
    written = []
    for start, stop in pairwise(bounds):
        tokens = text.read(start, stop)
        ends = tokens[-1:] == ours.end_of_text
        said = ours.decode_bytes(tokens[:-1].tolist() if ends else tokens.tolist())
        written.append(np.asarray(theirs.encode_bytes(said)
                                  + ([theirs.end_of_text] if ends else []), dtype=np.int64))
    return _text(written, theirs, text.name)


def _text(documents: list[np.ndarray], tokenizer: Tokenizer, name: str) -> TokenizedText:
    """Documents of their own; what stands before the first is what begins a text."""
    begin = tokenizer.begin_of_text
    starts = np.cumsum([0, *map(len, documents)])[:-1].astype("<u8")
    return TokenizedText(TokenStream([np.concatenate(documents)], [starts], name),
                         tokenizer.vocab_size,
                         tokenizer.end_of_text if begin is None else begin, name)
