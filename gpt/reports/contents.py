"""What a dataset holds, in numbers: how long documents are, how often each token occurs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.machine.progress import progress_bar
from gpt.reports.chart import Chart, Series, spread_evenly
from gpt.reports.spelling import on_one_line
from gpt.runs.history import Array
from gpt.shards import SPLITS, Dataset, Split, TokenStream

TOKENS_AT_ONCE = 1 << 21  # 16 MB of ids
LISTED = 50  # tokens of a kind
MOST_RANKS = 300  # points of a chart


class Contents:
    """A dataset, and what is counted in it.

    lengths: of each split's documents in tokens, the end-of-text behind them not counted.
    counts: how often each id stands in the training split, (vocab_size,).
    """

    def __init__(self, folder: Path):
        self.dataset = dataset = Dataset(folder)
        self.manifest, self.tokenizer = dataset.manifest, dataset.tokenizer
        self.lengths = {split: document_lengths(getattr(dataset, split)) for split in SPLITS}
        self.counts = token_counts(dataset.train, self.tokenizer.vocab_size, f"{folder}: train")

    @cached_property
    def tokens(self) -> dict[str, Any]:
        """Which tokens occur, and which never do."""
        sizes = self.tokenizer.byte_lengths()
        total = max(1, int(self.counts.sum()))

        def told(token: int) -> dict[str, Any]:
            count = int(self.counts[token])
            return {"id": token, "text": on_one_line(self.tokenizer, token),
                    "bytes": int(sizes[token]), "count": count, "share": count / total}

        # Ids may have gaps between them, which are no tokens.
        known = sorted({*self.tokenizer.text_ids, *self.tokenizer.specials.values()})
        unused = [token for token in known if not self.counts[token]]
        shown = np.where(self.counts > 0, sizes, 0)
        return {"known": len(known), "unused": len(unused),
                "examples": [told(token) for token in spread_evenly(unused, LISTED)],
                "commonest": [told(token) for token in _largest(self.counts)],
                "longest": [told(token) for token in _largest(shown)]}

    def histogram(self, split: Split) -> Chart:
        """How many documents are how long."""
        lengths = np.maximum(self.lengths[split], 1)
        ends = np.array([lengths.min(), lengths.max()] if len(lengths) else [1, 1])
        first, last = np.floor(2 * np.log2(ends))
        edges = 2 ** (np.arange(first - 1, last + 3) / 2)  # with an empty bar at both ends
        documents, _ = np.histogram(lengths, edges)
        bars = Series("documents", {"tokens": edges[:-1] * 2**0.25}, documents, kind="bars",
                      colour=SPLITS.index(split))
        return Chart(f"Lengths: {split}", "documents of so many tokens", [bars],
                     "a bar's longest are √2 times its shortest", log_x=True)

    def ranks(self) -> Chart:
        """How often the commonest token occurs, the second, and so on."""
        counts = np.sort(self.counts[self.counts > 0])[::-1]
        places = np.geomspace(1, max(1, len(counts)), MOST_RANKS)
        ranks = np.unique(np.rint(places).astype(np.int64))[:len(counts)]
        line = Series("occurrences", {"rank": ranks}, counts[ranks - 1])
        return Chart("Rank and frequency", "occurrences of the token of each rank", [line],
                     begins_log=True, log_x=True)

    @property
    def charts(self) -> list[Chart]:
        """All of them."""
        return [*map(self.histogram, SPLITS), self.ranks()]


def _largest(values: Array) -> list[int]:
    """Places of the largest values over zero; the earlier of equals first."""
    order = np.argsort(-values, kind="stable")[:LISTED]
    found: list[int] = order[values[order] > 0].tolist()
    return found


def document_lengths(stream: TokenStream) -> Array:
    """Of each document in tokens, (documents,), without its end-of-text."""
    lengths: Array = np.diff(stream.document_starts, append=len(stream)) - 1
    return lengths


def token_counts(stream: TokenStream, vocab_size: int, name: str) -> Array:
    """How often each id stands in a stream, (vocab_size,), read a piece at a time."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    with progress_bar("counting", len(stream), "tok") as bar:
        for start in range(0, len(stream), TOKENS_AT_ONCE):
            ids = stream.read(start, min(start + TOKENS_AT_ONCE, len(stream)))
            if ids.max() >= vocab_size:
                raise UserError(f"{name} has the id {ids.max()}, outside its vocabulary of "
                                f"{vocab_size}: a shard is damaged; prepare the dataset again")
            counts += np.bincount(ids, minlength=vocab_size)
            bar.update(len(ids))
    return counts


def spread(lengths: Array) -> dict[str, float]:
    """Quantiles that are lengths of documents, the extremes and the mean."""
    if not len(lengths):
        return {}
    tenth, half, most, nearly_all = np.quantile(lengths, (0.1, 0.5, 0.9, 0.99),
                                                method="inverted_cdf").tolist()
    return {"shortest": int(lengths.min()), "10 %": tenth, "median": half,
            "mean": float(lengths.mean()), "90 %": most, "99 %": nearly_all,
            "longest": int(lengths.max())}
