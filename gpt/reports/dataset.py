"""The page of a prepared dataset: what it holds, what it lacks, and what a model sees of it."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpt.reports.contents import Contents, spread
from gpt.reports.leftout import Overlap, cleaned, read_overlap, shown_cleaning, shown_overlap
from gpt.reports.page import Html, Page, details, element, figure, table
from gpt.reports.spelling import spans
from gpt.shards import SPLITS, Amount

DOCUMENTS, FIRST_TOKENS, SEED = 20, 300, 0
MOST_SOURCES = 200
LONGEST_RECIPE = 20_000  # characters
_AMOUNTS = ("documents", "tokens", "bytes of text", "tokens per byte", "bytes per token")


def dataset_page(folder: Path) -> Page:
    """All that is known of a dataset. Raises UserError for one that cannot be read."""
    contents = Contents(folder)
    manifest, found = contents.manifest, _figures(contents)
    page = Page(f"Dataset {manifest.name}", f"{folder}, fingerprint {manifest.fingerprint[:12]}")
    page.section("Summary", *_summary(found))
    page.section("By source", *_by_source(found["sources"]))
    page.section("Lengths of documents", _quantiles(found["lengths"]),
                 *map(contents.histogram, SPLITS))
    page.section("Tokens of the training split", *_unused(found["tokens"]), contents.ranks(),
                 _often_and_long(found["tokens"]))
    page.section("Left out or changed", shown_cleaning(manifest))
    page.section("Overlap with evaluation text", *shown_overlap(read_overlap(folder, manifest)))
    page.section("As the model sees it", *_documents(contents))
    return page


def dataset_figures(folder: Path) -> dict[str, Any]:
    """The numbers behind the page, for other programs."""
    contents = Contents(folder)
    return _figures(contents) | {"charts": [chart.as_json() for chart in contents.charts]}


def _figures(contents: Contents) -> dict[str, Any]:
    manifest, folder = contents.manifest, contents.dataset.folder
    overlap = read_overlap(folder, manifest)
    return {
        "name": manifest.name, "path": str(folder), "fingerprint": manifest.fingerprint,
        "dtype": manifest.dtype, "tokenizer": manifest.tokenizer.model_dump(),
        "splits": {split: _amount(manifest.splits[split]) for split in SPLITS},
        "sources": [{"path": source.path, "weight": source.weight,
                     **{split: _amount(getattr(source, split)) for split in SPLITS}}
                    for source in manifest.sources],
        "lengths": {split: spread(lengths) for split, lengths in contents.lengths.items()},
        "tokens": contents.tokens, "cleaning": cleaned(manifest), "bad_text": manifest.bad_text,
        "overlap": overlap.model_dump() if isinstance(overlap, Overlap) else None,
        "recipe": manifest.recipe}


def _amount(held: Amount) -> dict[str, Any]:
    """Documents, tokens and bytes, and what these are to each other."""
    return {"documents": held.documents, "tokens": held.tokens, "bytes": held.bytes,
            "tokens_per_byte": held.tokens / held.bytes if held.bytes else None,
            "bytes_per_token": held.bytes / held.tokens if held.tokens else None}


def _cells(amount: dict[str, Any]) -> list[Any]:
    return ["–" if value is None else value for value in amount.values()]


def _summary(found: dict[str, Any]) -> list[Html | None]:
    tokenizer, splits = found["tokenizer"], found["splits"]
    facts = {"tokenizer": tokenizer["spec"], "vocabulary": figure(tokenizer["vocab_size"]),
             "ids": found["dtype"], "training tokens": figure(splits["train"]["tokens"]),
             "validation tokens": figure(splits["val"]["tokens"])}
    tiles = element("dl", *(element("div", element("dt", name), element("dd", value))
                            for name, value in facts.items()), class_="tiles")
    recipe = yaml.safe_dump(found["recipe"], allow_unicode=True, sort_keys=False)
    if len(recipe) > LONGEST_RECIPE:
        recipe = recipe[:LONGEST_RECIPE] + "…"
    return [tiles, table(("split", *_AMOUNTS), [(split, *_cells(amount))
                                                for split, amount in splits.items()], "splits"),
            details("The recipe", element("pre", recipe))]


def _by_source(sources: list[dict[str, Any]]) -> list[Html | str | None]:
    weights = sum(source["weight"] or 0 for source in sources)
    rows = [(source["path"], split, *_cells(source[split]),
             f"{source['weight']:g} ({100 * source['weight'] / weights:.1f} %)"
             if source["weight"] is not None and split == "train" else "–")
            for source in sources[:MOST_SOURCES] for split in SPLITS]
    left = len(sources) - MOST_SOURCES
    return [table(("source", "split", *_AMOUNTS, "weight"), rows, "sources"),
            f"… and {left:,} more" if left > 0 else None]


def _quantiles(lengths: dict[str, dict[str, float]]) -> Html | None:
    columns = max(lengths.values(), key=len)  # a split without documents has none
    return table(("tokens", *columns),
                 [(split, *(round(each[name]) if each else "–" for name in columns))
                  for split, each in lengths.items()],
                 "lengths of documents in tokens")


def _unused(tokens: dict[str, Any]) -> list[Html | str]:
    said = (f"{tokens['unused']:,} of the {tokens['known']:,} tokens of the vocabulary "
            f"({100 * tokens['unused'] / tokens['known']:.1f} %) never occur.")
    if not tokens["unused"]:
        return [said]
    examples = [element("span", one["text"], class_="token", title=one["id"])
                for one in tokens["examples"]]
    return [said, details("Some of them", element("pre", *examples))]


def _often_and_long(tokens: dict[str, Any]) -> Html:
    common = [(element("code", one["text"]), one["id"], one["count"], 100 * one["share"])
              for one in tokens["commonest"]]
    long = [(element("code", one["text"]), one["id"], one["bytes"], one["count"])
            for one in tokens["longest"]]
    headings = f"The {len(common)} commonest", f"The {len(long)} longest that occur"
    return element("div", *(
        element("div", element("h3", heading), table(("token", "id", *names), rows, heading) or "")
        for heading, names, rows in zip(headings, (("times", "% of all"), ("bytes", "times")),
                                        (common, long), strict=True)), class_="beside")


def _documents(contents: Contents) -> list[Html | str]:
    """Some documents of the training split, drawn with the same seed each time."""
    stream, lengths = contents.dataset.train, contents.lengths["train"]
    draw = np.random.Generator(np.random.PCG64(SEED))
    drawn = np.sort(draw.choice(len(lengths), min(DOCUMENTS, len(lengths)), replace=False))
    parts: list[Html | str] = [
        f"{len(drawn)} of the {len(lengths):,} documents of the training split, drawn at random. "
        "Each colour is a token, whose id is told where one points at it."]
    for number in drawn.tolist():
        length, start = int(lengths[number]), int(stream.document_starts[number])
        ids = stream.read(start, start + min(length + 1, FIRST_TOKENS)).tolist()
        left, source = length + 1 - len(ids), _source(contents, start)
        rest = element("span", f"… {left:,} more tokens", class_="given") if left else ""
        parts += [element("h3", f"Document {number:,}{source}, {length:,} tokens"),
                  element("pre", *spans(contents.tokenizer, ids), rest)]
    return parts


def _source(contents: Contents, token: int) -> str:
    """Which source of a mixture a training token is from."""
    shards = contents.manifest.splits["train"].shards
    ends = list(accumulate(shard.tokens for shard in shards))
    source = shards[bisect_right(ends, token)].source
    return "" if source is None else f" from {contents.manifest.sources[source].path}"
