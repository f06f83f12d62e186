"""A token stream, and what its ids mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.shards import Dataset, TokenStream


@dataclass(frozen=True)
class TokenizedText:
    """Text to learn from or to be scored on: documents, each ending with end-of-text.

    vocab_size: ids from there on are no tokens. name: what errors call this text.
    """

    stream: TokenStream
    vocab_size: int
    end_of_text: int
    name: str

    @classmethod
    def training(cls, dataset: Dataset) -> TokenizedText:
        """A dataset's training split."""
        return cls._of(dataset, dataset.train, "the training split")

    @classmethod
    def validation(cls, dataset: Dataset) -> TokenizedText:
        """A dataset's validation split."""
        return cls._of(dataset, dataset.val, "the validation split")

    @classmethod
    def mixture(cls, dataset: Dataset) -> dict[TokenizedText, float]:
        """The training text of each source that has a weight, and the weight; empty if none has."""
        paths = [source.path for source in dataset.manifest.sources if source.weight is not None]
        return {cls._of(dataset, part.stream, f"the source {path}"): part.weight
                for path, part in zip(paths, dataset.mixture, strict=True)}

    @classmethod
    def _of(cls, dataset: Dataset, stream: TokenStream, part: str) -> TokenizedText:
        tokenizer = dataset.tokenizer
        return cls(stream, tokenizer.vocab_size, tokenizer.end_of_text, f"{dataset.folder}: {part}")

    def __len__(self) -> int:
        return len(self.stream)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop as int64. Token -1 is end-of-text: it stands before every document.

        Raises UserError for an id that the vocabulary does not have.
        """
        tokens = self.stream.read(max(start, 0), stop)
        if tokens.size and tokens.max() >= self.vocab_size:
            self._refuse(tokens, max(start, 0))
        return tokens if start >= 0 else np.concatenate(([self.end_of_text], tokens))

    def origin(self, start: int, stop: int) -> dict[str, Any]:
        """Where tokens start to stop stand: {"text": its name, "tokens": [start, stop],
        "documents": [first, last]}, documents counted from 0."""
        starts = self.stream.document_starts
        first, last = np.searchsorted(starts, [max(start, 0), max(start, stop - 1)], "right") - 1
        return {"text": self.name, "tokens": [start, stop], "documents": [int(first), int(last)]}

    def _refuse(self, tokens: np.ndarray, start: int) -> None:
        place = int((tokens >= self.vocab_size).argmax())
        raise UserError(f"{self.name} has the id {tokens[place]} at token {start + place}, outside "
                        f"its vocabulary of {self.vocab_size}: a shard is damaged; prepare the "
                        "dataset again")
