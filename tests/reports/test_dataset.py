"""A dataset's page says what its files hold, whatever that is, and what was not looked for."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
import subprocess
import sys
import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.preparation import prepare
from gpt.errors import UserError
from gpt.files import sha256_of
from gpt.reports import contents, spelling
from gpt.reports.dataset import FIRST_TOKENS, dataset_figures, dataset_page
from gpt.reports.spelling import spans, visible
from gpt.shards import SPLITS, Dataset, TokenStream, map_shards, read_manifest, write_manifest
from gpt.tokenizer import build_tokenizer
from tests.data.corpora import (
    cleaned,
    documents,
    many_files,
    mixture,
    one_file,
    prose,
    recipe,
    records,
    write_jsonl,
)
from tests.tiny import ROOT

OUT = Path("out")
EVIL = "<script>alert(1)</script>"
TOKENS, SEEN = "Tokens of the training split", "As the model sees it"
OVERLAP = "Overlap with evaluation text"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def all_pairs_of_bytes():
    """Many texts, and a tokenizer of every pair of bytes, whatever characters it cuts."""
    tokens = [bytes([a]) for a in range(256)]
    tokens += [bytes([a, b]) for a in range(256) for b in range(256)]
    Path("pairs.tiktoken").write_bytes(b"".join(
        base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return many_files() | {"tokenizer": "pairs.tiktoken"}


KINDS = [many_files, one_file, records, mixture, cleaned, all_pairs_of_bytes]


def of_texts(*texts, **changes):
    write_jsonl(Path("texts.jsonl"), list(texts))
    prepare(recipe(**{"sources": ["texts.jsonl"], "tokenizer": "bpe:300", **changes}))
    return Dataset(OUT)


def ids_of(stream):
    """The ids of each document."""
    bounds = [*stream.document_starts.tolist(), len(stream)]
    return [stream.read(start, end - 1).tolist() for start, end in pairwise(bounds)]


class Read(HTMLParser):
    """The page as its reader has it: the text of each section, rows of tables, tokens of texts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sections, self.rows, self.texts, self._open = [], {}, {}, [], []
        self.feed(html)

    @classmethod
    def of(cls, folder=OUT):
        return cls(dataset_page(folder).html())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self._open.append((tag, attributes))
        if tag == "section":
            self._heading, self._said = "", []
        elif tag == "tr":
            self.rows.setdefault(self._heading, []).append([])
        elif tag in ("td", "th"):
            self.rows[self._heading][-1].append("")
        elif tag == "pre":
            self.texts.append([])
        elif tag == "span" and attributes.get("class") == "token":
            self.texts[-1].append((int(attributes["title"]), ""))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass
        if tag == "section":
            self.sections[self._heading] = " ".join(self._said)

    def handle_data(self, text):
        inside = [tag for tag, _ in self._open]
        if "section" not in inside:
            return
        self._said.append(text)
        if inside[-1] == "h2":
            self._heading = text
        if "tr" in inside:
            self.rows[self._heading][-1][-1] += text
        if inside[-1] == "span" and self._open[-1][1].get("class") == "token":
            self.texts[-1][-1] = (self.texts[-1][-1][0], text)

    def numbers(self, heading):
        """Rows of a section's tables by what they are called."""
        return {row[0]: row[1:] for row in self.rows[heading]}


def bytes_said(text):
    """The bytes that a text with signs stands for."""
    data = b""
    for part in re.split(r"(⟨[^⟩]+⟩)", text.replace("↵\n", "\n")):
        if part.startswith("⟨U+"):
            data += chr(int(part[3:-1], 16)).encode()
        else:
            data += bytes.fromhex(part[1:-1]) if part.startswith("⟨") else part.encode()
    return data


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__, scope="module")
def made(request, tmp_path_factory):
    """(a dataset, its figures, its page), in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        prepare(recipe(**request.param()))
        folder = OUT.resolve()
    return Dataset(folder), dataset_figures(folder), Read.of(folder)


def test_amounts_are_those_of_the_documents(made):
    dataset, figures, page = made
    for split in SPLITS:
        texts, ids = documents(dataset, split), ids_of(getattr(dataset, split))
        size, tokens = sum(map(len, texts)), sum(map(len, ids)) + len(ids)
        assert figures["splits"][split] == {
            "documents": len(texts), "tokens": tokens, "bytes": size,
            "tokens_per_byte": tokens / size, "bytes_per_token": size / tokens}
        assert page.numbers("Summary")[split] == [
            f"{len(texts):,}", f"{tokens:,}", f"{size:,}", f"{tokens / size:.4g}",
            f"{size / tokens:.4g}"]


def test_lengths_are_those_of_the_documents(made):
    dataset, figures, page = made
    for split in SPLITS:
        lengths = sorted(map(len, ids_of(getattr(dataset, split))))
        at = {f"{percent} %": lengths[math.ceil(percent * len(lengths) / 100) - 1]
              for percent in (10, 50, 90, 99)}
        expected = {"shortest": lengths[0], "10 %": at["10 %"], "median": at["50 %"],
                    "mean": pytest.approx(statistics.mean(lengths), rel=1e-12),
                    "90 %": at["90 %"], "99 %": at["99 %"], "longest": lengths[-1]}
        assert figures["lengths"][split] == expected
        assert list(figures["lengths"][split]) == page.rows["Lengths of documents"][0][1:]
        assert page.numbers("Lengths of documents")[split] == [
            f"{round(value):,}" for value in figures["lengths"][split].values()]


def test_each_bar_is_as_high_as_documents_have_its_lengths(made):
    dataset, figures, _ = made
    for split, chart in zip(SPLITS, figures["charts"], strict=False):
        (bars,) = chart["series"]
        lengths = [len(ids) for ids in ids_of(getattr(dataset, split))]
        for middle, documents_there in zip(bars["x"]["tokens"], bars["y"], strict=True):
            low, high = middle / 2**0.25, middle * 2**0.25
            # Of six digits: no whole number but a power of two is so near to a border.
            assert documents_there == sum(low * 0.99999 <= n < high * 0.99999 for n in lengths)
        assert sum(bars["y"]) == len(lengths)
        assert bars["y"][0] == bars["y"][-1] == 0 < min(bars["y"][1], bars["y"][-2])


def test_tokens_are_counted_one_by_one(made):
    dataset, figures, page = made
    ids, tokenizer = dataset.train.read(0, len(dataset.train)).tolist(), dataset.tokenizer
    counts, found = Counter(ids), figures["tokens"]
    known = set(range(tokenizer.vocab_size))  # none of these has gaps
    assert (found["known"], found["unused"]) == (len(known), len(known - counts.keys()))
    assert {one["id"] for one in found["examples"]} <= known - counts.keys()
    assert len(found["examples"]) == min(50, found["unused"])
    assert f"{found['unused']:,} of the {len(known):,} tokens" in page.sections[TOKENS]

    common = sorted(counts, key=lambda token: (-counts[token], token))[:50]
    assert [(one["id"], one["count"]) for one in found["commonest"]] == [
        (token, counts[token]) for token in common]
    assert [one["share"] for one in found["commonest"]] == [
        counts[token] / len(ids) for token in common]
    sizes = {token: len(tokenizer.decode_bytes([token])) for token in counts
             if token != tokenizer.end_of_text}
    long = sorted(sizes, key=lambda token: (-sizes[token], token))[:50]
    assert [(one["id"], one["bytes"], one["count"]) for one in found["longest"]] == [
        (token, sizes[token], counts[token]) for token in long]
    rows = [row[1:] for row in page.rows[TOKENS] if row[0] != "token"]
    assert rows == [[f"{token:,}", f"{counts[token]:,}", f"{100 * counts[token] / len(ids):.4g}"]
                    for token in common] + [
        [f"{token:,}", f"{sizes[token]:,}", f"{counts[token]:,}"] for token in long]

    (line,) = figures["charts"][2]["series"]
    by_rank = sorted(counts.values(), reverse=True)
    assert line["y"] == [by_rank[rank - 1] for rank in line["x"]["rank"]]
    assert (line["x"]["rank"][0], line["x"]["rank"][-1]) == (1, len(by_rank))


def test_of_many_ranks_some_are_drawn(monkeypatch):
    of_texts(*(prose(9, i) for i in range(40)))
    (every,) = dataset_figures(OUT)["charts"][2]["series"]
    assert every["x"]["rank"] == list(range(1, len(every["y"]) + 1)) and len(every["y"]) > 20
    monkeypatch.setattr(contents, "MOST_RANKS", 7)
    (some,) = dataset_figures(OUT)["charts"][2]["series"]
    ranks = some["x"]["rank"]
    assert len(ranks) == 7 and (ranks[0], ranks[-1]) == (1, max(every["x"]["rank"]))


def test_texts_of_tokens_are_what_they_stand_for(made):
    dataset, figures, _ = made
    tokenizer = dataset.tokenizer
    names = {i: name.encode() for name, i in tokenizer.specials.items()}
    for kind in ("examples", "commonest", "longest"):
        for one in figures["tokens"][kind]:
            text = one["text"].replace("↵", "↵\n").replace("␣", " ").replace("⇥", "\t")
            expected = names.get(one["id"]) or tokenizer.decode_bytes([one["id"]])
            assert bytes_said(text) == expected


def test_documents_are_shown_token_by_token(made):
    dataset, _, page = made
    stream, end = ids_of(dataset.train), dataset.tokenizer.end_of_text
    headings = re.findall(r"Document ([\d,]+)(?: from (\S+))?, ([\d,]+) tokens",
                          page.sections[SEEN])
    numbers = [int(number.replace(",", "")) for number, _, _ in headings]
    assert len(set(numbers)) == min(20, len(stream))
    shown = page.texts[-len(numbers):]
    texts = documents(dataset, "train")
    for number, (_, _, length), pairs in zip(numbers, headings, shown, strict=True):
        ids = [*stream[number], end]
        assert length == f"{len(ids) - 1:,}"
        assert [token for token, _ in pairs] == ids[:FIRST_TOKENS]
        whole, named = bytes_said("".join(text for _, text in pairs)), b""
        if len(ids) <= FIRST_TOKENS:
            named = pairs[-1][1].encode()
            assert named == b"<|endoftext|>"
        else:
            assert f"… {len(ids) - FIRST_TOKENS:,} more tokens" in page.sections[SEEN]
        text = texts[number] + named
        assert whole == text[:len(whole)]
        assert len(ids) > FIRST_TOKENS or whole == text


def test_the_kinds_are_of_all_sorts(made):
    """Of both widths of ids, with one document and many, with documents that are cut."""
    dataset, figures, _ = made
    kind = dataset.manifest.tokenizer.spec
    wide = dataset.manifest.tokenizer.vocab_size > 2**16
    assert figures["dtype"] == ("uint32" if wide else "uint16")
    assert wide == (kind == "pairs.tiktoken")
    if figures["splits"]["train"]["documents"] == 1:
        assert figures["splits"]["val"]["documents"] == 1
        assert figures["lengths"]["train"]["longest"] > FIRST_TOKENS


def test_bytes_of_no_whole_character_are_seen():
    assert visible("é\n".encode() + b"\xe2\x86 \x00\r") == "é↵\n⟨e2⟩⟨86⟩ ⟨U+0000⟩⟨U+000D⟩"
    assert visible("\u202e\u200b\ufeff\t".encode()) == "⟨U+202E⟩⟨U+200B⟩⟨U+FEFF⟩\t"
    byte = build_tokenizer("byte")
    assert [str(span) for span in spans(byte, [0xE2, 10, byte.end_of_text])] == [
        '<span class="token" title="226">⟨e2⟩</span>', '<span class="token" title="10">↵\n</span>',
        '<span class="token" title="256">&lt;|endoftext|&gt;</span>']


def test_what_is_long_is_cut_and_said_to_be(monkeypatch):
    prepare(recipe(**records()))
    monkeypatch.setattr(spelling, "LONGEST", 4)
    byte = build_tokenizer("byte")
    assert spelling.spelled(byte, byte.end_of_text) == "<|en…"
    monkeypatch.setattr("gpt.reports.dataset.MOST_SOURCES", 1)
    monkeypatch.setattr("gpt.reports.dataset.LONGEST_RECIPE", 12)
    page = Read.of()
    assert {row[0] for row in page.rows["By source"]} == {"source", "plain.jsonl"}
    assert page.sections["By source"].endswith("… and 1 more")
    assert page.sections["Summary"].endswith("tokenizer: c…")


def test_sources_of_a_mixture_are_told_apart():
    prepare(recipe(**mixture()))
    dataset, figures, page = Dataset(OUT), dataset_figures(OUT), Read.of()
    rows = page.rows["By source"][1:]
    for i, (path, weight) in enumerate([("a.jsonl", 3), ("b", 0.5)]):
        source = figures["sources"][i]
        assert (source["path"], source["weight"]) == (path, weight)
        for split in SPLITS:
            stream = map_shards(OUT, dataset.manifest, split, i)
            ids = ids_of(stream)
            size = sum(len(dataset.tokenizer.decode_bytes(each)) for each in ids)
            assert source[split] == {
                "documents": len(ids), "tokens": len(stream), "bytes": size,
                "tokens_per_byte": len(stream) / size if ids else None,
                "bytes_per_token": size / len(stream) if ids else None}
            share = {3: "3 (85.7 %)", 0.5: "0.5 (14.3 %)"}[weight] if split == "train" else "–"
            ratios = [f"{source[split][name]:.4g}" if ids else "–"
                      for name in ("tokens_per_byte", "bytes_per_token")]
            assert rows.pop(0) == [path, split, f"{len(ids):,}", f"{len(stream):,}", f"{size:,}",
                                   *ratios, share]
    assert figures["sources"][1]["val"]["tokens"] == 0  # of no text, there is no ratio
    firsts = len(ids_of(map_shards(OUT, dataset.manifest, "train", 0)))
    headings = re.findall(r"Document (\d+) from (\S+),", page.sections[SEEN])
    assert {path for _, path in headings} == {"a.jsonl", "b"}
    for number, path in headings:
        assert path == ("a.jsonl" if int(number) < firsts else "b")


def test_sources_without_weights_are_told_apart():
    prepare(recipe(**records()))
    texts = {"plain.jsonl": [prose(12, i) for i in range(60)],
             "packed.jsonl.gz": [prose(8, 100 + i) for i in range(40)]}
    for source in dataset_figures(OUT)["sources"]:
        mine = [text.encode() for text in texts[source["path"]]]
        assert source["weight"] is None
        assert sum(source[split]["bytes"] for split in SPLITS) == sum(map(len, mine))
        assert sum(source[split]["documents"] for split in SPLITS) == len(mine)


def test_the_same_documents_are_drawn_each_time():
    prepare(recipe(**records()))
    assert dataset_page(OUT).html() == dataset_page(OUT).html()


def test_what_was_not_looked_for_is_said():
    of_texts(*(prose(9, i) for i in range(40)))
    page, figures = Read.of(), dataset_figures(OUT)
    assert page.numbers("Left out or changed") == {
        "duplicates, left out": ["not looked for", "would be with drop_duplicates=true"],
        "too short, left out": ["not looked for", "would be with min_characters=N"],
        "too long, left out": ["not looked for", "would be with max_characters=N"],
        "in another Unicode form, changed": ["not looked for", "would be with normalize=NFC"],
        "bad text": ["0", "on_bad_text=error; a preparation stops at it"], "": [
            "documents", "as the recipe says"]}
    assert "was not looked for: overlap_with=validation" in page.sections[OVERLAP]
    assert figures["overlap"] is None
    assert figures["cleaning"] == dict.fromkeys(
        ("duplicates", "too_short", "too_long", "normalized"))


def test_what_was_looked_for_is_counted():
    texts = [prose(9, i) for i in range(60)]
    of_texts(*texts, *texts[:7], "short", "e\u0301" + prose(9, 99), min_characters=10,
             drop_duplicates=True, normalize="NFC", max_characters=10_000)
    assert dataset_figures(OUT)["cleaning"] == {
        "duplicates": 7, "too_short": 1, "too_long": 0,
        "normalized": sum("e\u0301" in text for text in texts) + 1}
    said = Read.of().numbers("Left out or changed")
    assert said["duplicates, left out"] == ["7", "drop_duplicates=true"]
    assert said["too short, left out"] == ["1", "min_characters=10"]
    assert said["too long, left out"] == ["0", "max_characters=10000"]


def test_bad_text_is_counted():
    lines = [json.dumps({"text": prose(9, i)}).encode() for i in range(50)]
    lines[3], lines[20] = b'{"text": "\xff bytes"}', b'{"text": 5}'
    Path("bad.jsonl").write_bytes(b"\n".join(lines))
    prepare(recipe(sources=["bad.jsonl"], tokenizer="byte", on_bad_text="skip"))
    assert dataset_figures(OUT)["bad_text"] == {"skipped": 2}
    assert Read.of().numbers("Left out or changed")["bad text, skipped"] == [
        "2", "on_bad_text=skip; listed in bad_text.jsonl"]


def test_that_no_text_was_bad_is_said():
    of_texts(*(prose(9, i) for i in range(40)), on_bad_text="replace")
    assert Read.of().numbers("Left out or changed")["bad text"] == ["0", "on_bad_text=replace"]


def with_overlap():
    rhyme = " ".join(f"word{i}" for i in range(20))
    Path("mine.txt").write_text(f"a b {rhyme} c {EVIL}", encoding="utf-8")
    return of_texts(*(prose(9, i) for i in range(40)), rhyme, overlap_with="mine.txt")


def test_overlap_is_shown_as_it_was_found():
    with_overlap()
    found = dataset_figures(OUT)["overlap"]
    assert found == json.loads((OUT / "overlap.json").read_text(encoding="utf-8"))
    page = Read.of()
    assert "1 of 1 documents of mine.txt share 13 words in a row" in page.sections[OVERLAP]
    assert f"8 of their {found['ngrams']} 13-grams" in page.sections[OVERLAP]
    assert page.numbers(OVERLAP)["mine.txt:1"] == [
        "8", f"{found['ngrams']}", " ".join(f"word{i}" for i in range(13))]


@pytest.mark.parametrize("damage", ["", "{", '{"n": 13}', "[]", None, "another number"])
def test_a_broken_report_of_overlap_is_said_and_the_rest_is_shown(damage):
    with_overlap()
    if damage is None:
        (OUT / "overlap.json").unlink()
    elif damage == "another number":
        damaged("overlap.json", lambda data: data.__setitem__(data.index(b"1"), ord("2")))
    else:
        (OUT / "overlap.json").write_text(damage, encoding="utf-8")
    page = Read.of()
    assert "out/overlap.json is missing or damaged" in page.sections[OVERLAP]
    assert page.texts and dataset_figures(OUT)["overlap"] is None


def test_a_report_of_another_shape_is_no_report_though_its_hash_is_right():
    with_overlap()
    (OUT / "overlap.json").write_text('{"n": 13, "most": [5]}', encoding="utf-8")
    manifest = read_manifest(OUT)
    files = manifest.files | {"overlap.json": sha256_of(OUT / "overlap.json")}
    write_manifest(OUT, manifest.model_copy(update={"files": files}))
    assert "out/overlap.json is missing or damaged" in Read.of().sections[OVERLAP]


def test_hostile_text_is_text():
    text = f"{EVIL}</pre></section></script>\x00\x1b[31m\r\n\u202e&lt;é"
    name = "<img src=x onerror=alert(1)>.jsonl"
    write_jsonl(Path(name), [f"{text}{i}" for i in range(30)])
    prepare(recipe(sources=[name], tokenizer="bpe:400"))
    html = dataset_page(OUT).html()
    page = Read(html)
    assert EVIL not in html and "<img" not in html
    assert page.tags.count("script") == 3 and page.tags.count("section") == 7
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    assert page.rows["By source"][1][0] == name and name in page.sections["Summary"]
    for pairs in page.texts[-20:]:
        assert bytes_said("".join(said for _, said in pairs[:-1])).startswith(text.encode())
    assert any(EVIL[:7] in one["text"] for one in dataset_figures(OUT)["tokens"]["longest"])


def damaged(name, change):
    data = bytearray((OUT / name).read_bytes())
    change(data)
    (OUT / name).write_bytes(data)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda: damaged("train-00000.bin", lambda data: data.__setitem__(slice(8, 10), b"\xff\xff")),
     r"out: train has the id 65535, outside its vocabulary of 300: a shard is damaged"),
    (lambda: damaged("train-00000.offsets", lambda data: data.__setitem__(9, 0xFF)),
     r"out: train: its list of where documents start is damaged"),
    (lambda: damaged("val-00000.offsets", lambda data: data.__setitem__(0, 1)),
     r"out: val: its list of where documents start is damaged"),
    (lambda: (OUT / "val-00000.offsets").unlink(), r"val-00000.offsets is missing"),
    (lambda: (OUT / "train-00000.bin").write_bytes(b"1"), r"train-00000.bin is damaged"),
    (lambda: (OUT / "tokenizer/encoding.json").write_text("{"), r"cannot read the tokenizer"),
    (lambda: (OUT / "dataset.json").unlink(), r"there is no dataset in out")])
def test_a_dataset_that_cannot_be_read_is_one_line(damage, message):
    of_texts(*(prose(9, i) for i in range(40)))
    dataset_page(OUT)
    damage()
    for reader in (dataset_page, dataset_figures):
        with pytest.raises(UserError, match=message) as caught:
            reader(OUT)
        assert "\n" not in str(caught.value)


def test_tokens_are_counted_a_piece_at_a_time(monkeypatch):
    ids = np.random.Generator(np.random.PCG64(0)).integers(0, 500, 10_000).astype("<u2")
    read, sizes = TokenStream.read, []

    def watched(stream, start, stop):
        sizes.append(stop - start)
        return read(stream, start, stop)

    monkeypatch.setattr(TokenStream, "read", watched)
    monkeypatch.setattr(contents, "TOKENS_AT_ONCE", 999)
    stream = TokenStream([ids[:1500], ids[1500:]])
    counts = contents.token_counts(stream, 600, "it")
    assert counts.tolist() == [Counter(ids.tolist())[i] for i in range(600)]
    assert max(sizes) == 999 and sum(sizes) == len(ids)


def test_memory_does_not_grow_with_the_tokens():
    tokens = 32_000_000
    Path("zeros").touch()
    with Path("zeros").open("r+b") as file:
        file.truncate(2 * tokens)
    stream = TokenStream([np.memmap("zeros", dtype="<u2", mode="r")])
    tracemalloc.start()
    counts = contents.token_counts(stream, 1000, "it")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts[0] == tokens
    assert peak < 4 * 8 * contents.TOKENS_AT_ONCE < 8 * tokens  # as int64, all at once


def test_a_page_of_many_long_tokens_stays_small():
    of_texts(*(f"{'=' * 5000} {i} {prose(3000, i)}" for i in range(60)), tokenizer="bpe:500")
    assert len(dataset_page(OUT).html()) < 1_000_000


def test_no_page_of_a_dataset_loads_torch():
    of_texts(*(prose(9, i) for i in range(40)))
    code = ("import sys; from pathlib import Path; from gpt.reports.dataset import dataset_page; "
            "dataset_page(Path('out')).html(); print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "False\n"


def test_a_split_that_is_empty_is_shown_as_such():
    of_texts(*(prose(9, i) for i in range(40)))
    manifest = read_manifest(OUT)
    assert dataset_figures(OUT)["charts"][-1]["series"]
    for split in SPLITS:
        manifest.splits[split].shards.clear()
    write_manifest(OUT, manifest)
    found = dataset_figures(OUT)
    assert found["tokens"]["unused"] == found["tokens"]["known"]
    assert [len(each) for each in found["lengths"].values()] == [0, 0]
    dataset_page(OUT).write(Path("page.html"))


def test_a_split_without_documents_beside_another_has_no_lengths():
    of_texts(*(prose(9, i) for i in range(40)))
    manifest = read_manifest(OUT)
    manifest.splits["val"].shards.clear()
    write_manifest(OUT, manifest)
    dataset_page(OUT).write(Path("page.html"))
    lengths = re.search(r"lengths of documents in tokens.*?</table>",
                        Path("page.html").read_text(), re.DOTALL)
    assert lengths is not None and lengths[0].count("–") == 7
