"""Which text is held out for validation, by name or from the end, and where documents begin."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.documents import split as split_module
from data.documents.corpus import Corpus, SeenTexts
from data.documents.split import ByName, ByPlace, Piece, SplitPlan
from data.recipe import Recipe
from data.sources import streams
from data.sources import text as text_module
from data.sources.bad_text import BadText
from data.sources.files import list_files
from gpt.errors import UserError
from gpt.shards import held_out_names, is_held_out
from tests.data.sources.sample_files import corpus_of, write

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def plan(files: dict[str, str | bytes], *sources: str, seen: SeenTexts | None = None,
         **recipe) -> SplitPlan:
    for name, text in files.items():
        write(f"corpus/{name}", text)
    fields = {"split": "documents", "val_fraction": 0.25} | recipe
    return SplitPlan(corpus_of(*(sources or ["corpus"]), seen=seen, **fields))


def pieces(given: SplitPlan, files: range | None = None) -> list[Piece]:
    return [piece for number in files or range(len(given.corpus.files))
            for piece in given.pieces(number, BadText(given.corpus.recipe.on_bad_text))]


def texts(given: SplitPlan, split: str) -> list[str]:
    """The documents of one split, put together again by where pieces start and end."""
    documents, current = [], None
    for piece in pieces(given):
        if piece.split != split or not piece.text:
            continue
        assert piece.starts == (current is None)
        current = (current or "") + piece.text
        if piece.ends:
            documents.append(current)
            current = None
    assert current is None
    return documents


def jsonl(*records: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in records)


FILES = {f"{i:02}.txt": f"document {i}\n" * 10 for i in range(30)}
RECORDS = [f"record {i}" for i in range(60)]


# By name


def test_documents_stay_on_their_side_when_others_are_added():
    before = plan(dict(list(FILES.items())[:15]))
    train, val = texts(before, "train"), texts(before, "val")
    after = plan(FILES)
    assert len(train) + len(val) == 15 and train and val
    assert set(train) < set(texts(after, "train"))
    assert set(val) <= set(texts(after, "val"))
    assert len(texts(after, "train")) + len(texts(after, "val")) == 30


def test_the_side_of_a_file_is_that_of_its_name_and_of_a_record_that_of_its_text():
    given = plan(FILES)
    held_out = held_out_names(FILES, 0.25, 0)
    assert texts(given, "val") == [text for name, text in FILES.items() if name in held_out]
    there = texts(plan({"a.jsonl": jsonl(*RECORDS)}, "corpus/a.jsonl"), "val")
    again = texts(plan({"b.csv": "text\n" + "\n".join(reversed(RECORDS))}, "corpus/b.csv"), "val")
    assert 0 < len(there) < 30 and there == again[::-1]


def test_the_split_follows_the_seed():
    assert texts(plan(FILES, seed=1), "val") != texts(plan(FILES, seed=2), "val")


def test_equal_records_fall_on_the_same_side():
    given = plan({"a.jsonl": jsonl(*RECORDS, *RECORDS), "b.jsonl": jsonl(*RECORDS[::-1])})
    train, val = texts(given, "train"), texts(given, "val")
    assert not set(train) & set(val) and len(train) + len(val) == 180
    forms = [f"caf{e} {i}" for i in range(40) for e in ("\u00e9", "e\u0301")]
    for form, shared in (("NFC", 0), ("none", 1)):
        given = plan({"c.jsonl": jsonl(*forms)}, "corpus/c.jsonl", normalize=form)
        sides = [{text.replace("e\u0301", "\u00e9") for text in texts(given, side)}
                 for side in ("train", "val")]
        assert bool(sides[0] & sides[1]) == shared


def test_a_corpus_too_large_to_list_is_split_by_threshold_and_all_the_same(monkeypatch):
    files = {"a.jsonl": jsonl(*RECORDS)}
    listed = plan(files)
    monkeypatch.setattr(split_module, "SMALL_CORPUS", 0)
    unlisted = plan(files)
    assert texts(unlisted, "val") == texts(listed, "val") != []
    rule = unlisted._rules[0]
    assert isinstance(rule, ByName) and rule.held_out is None
    for document in unlisted.corpus.documents(0, BadText("error")):
        out = is_held_out(document.name, 0.25, 0)
        assert ("".join(document.pieces(BadText("error"))) in texts(unlisted, "val")) == out


def test_a_corpus_of_unknown_size_is_not_read_before_it_is_split(monkeypatch):
    import datasets
    calls = []

    def load(*args, **fields):
        calls.append(args)
        return [{"text": text} for text in RECORDS]

    monkeypatch.setattr(datasets, "load_dataset", load)
    recipe = Recipe(sources=[{"path": "owner/name", "format": "datasets"}], val_fraction=0.25)
    given = SplitPlan(Corpus(recipe, list_files(recipe.sources, Path("fetched"))))
    assert not calls
    assert set(texts(given, "train")) | set(texts(given, "val")) == set(RECORDS)
    assert texts(given, "val")
    assert [piece.stored for piece in pieces(given)] == [0] * 61
    tail = SplitPlan(Corpus(recipe.model_copy(update={"split": "tail"}), given.corpus.files))
    train, val = sides(tail)
    assert train + val == "".join(RECORDS) and len(train) == int(len(train + val) * 0.75)


# By place


def sides(given: SplitPlan) -> tuple[str, str]:
    return "".join(texts(given, "train")), "".join(texts(given, "val"))


@pytest.mark.parametrize("split", ["tail", "auto"])
def test_the_tail_of_a_single_document_is_held_out(split):
    text = "".join(f"line {i}\n" for i in range(100))
    for name, content in (("one.txt", text), ("one.txt.gz", gzip.compress(text.encode())),
                          ("one.jsonl", jsonl(text)), ("one.jsonl.gz",
                                                       gzip.compress(jsonl(text).encode()))):
        given = plan({name: content}, f"corpus/{name}", split=split)
        [train], [val] = texts(given, "train"), texts(given, "val")
        assert train + val == text
        assert len(train) == int(len(text) * 0.75)


def test_several_documents_are_split_whole_unless_the_tail_is_asked_for():
    assert all(text in FILES.values() for text in texts(plan(FILES, split="auto"), "val"))
    tail = plan(FILES, split="tail")
    everything = "".join(FILES.values())
    cut = int(len(everything) * 0.75)
    assert sides(tail) == (everything[:cut], everything[cut:])
    assert len(texts(tail, "train")) + len(texts(tail, "val")) == 31  # one stands on both sides
    for auto in ({"a.jsonl": jsonl(*RECORDS)}, {"a.jsonl": jsonl("x"), "b.txt": "y"}):
        assert isinstance(plan(auto, *[f"corpus/{name}" for name in auto],
                               split="auto")._rules[0], ByName)


def test_the_tail_is_counted_in_bytes_of_text_where_sizes_do_not_tell():
    texts_given = [f"{i} é 中\n" for i in range(80)]
    everything = "".join(texts_given).encode()
    cut = int(len(everything) * 0.75)
    half = "".join(texts_given[:40]), "".join(texts_given[40:])
    corpora = [{"a.txt": half[0], "b.txt": half[1]},
               {"a.txt.gz": gzip.compress(half[0].encode()), "b.txt": half[1]},
               {"a.jsonl": jsonl(*texts_given)},
               {"a.csv": 'text,n\n"' + '"\n"'.join(texts_given) + '"\n'}]
    for i, files in enumerate(corpora):
        given = plan({f"{i}/{name}": text for name, text in files.items()}, f"corpus/{i}",
                     split="tail")
        train, val = sides(given)
        assert (train + val).encode() == everything
        assert 0 <= cut - len(train.encode()) < 4  # no character is cut


def test_the_tail_is_that_of_the_text_that_stays():
    files = {"a.txt": b"\xff" * 900, "b.txt": "x" * 60, "c.txt": "y" * 40}
    assert sides(plan(files, split="tail", on_bad_text="skip")) == ("x" * 60 + "y" * 15, "y" * 25)
    cleaned = plan({"e/a.txt": "short " * 100, "e/b.txt": "x" * 60, "e/c.txt": "y" * 40},
                   "corpus/e", split="tail", max_characters=99)
    assert sides(cleaned) == ("x" * 60 + "y" * 15, "y" * 25)
    records = {"d.jsonl": jsonl("short", "z" * 60, "w" * 40)}
    assert sides(plan(records, "corpus/d.jsonl", split="tail", min_characters=10)) == (
        "z" * 60 + "w" * 15, "w" * 25)


def test_the_tail_of_a_text_that_normalisation_shortens_is_not_empty():
    """Full-width letters take three bytes each, and one when normalised."""
    write("corpus/a.txt", "\uff21" * 100)
    assert sides(plan({}, split="tail", normalize="NFKC")) == ("A" * 75, "A" * 25)


def test_a_tail_is_the_same_whenever_and_from_wherever_it_is_read():
    """A tokenizer may read the beginning of the corpus first; a restart begins in the middle."""
    files = {"a.jsonl": jsonl("x", *RECORDS), "b.jsonl": jsonl("x", *RECORDS)}
    given = plan(files, split="tail", min_characters=2)  # leaves out each file's first
    once = pieces(given)
    assert pieces(given) == once
    for number in (1, 0, 0, 1):
        assert pieces(given, range(number, number + 1)) == [
            piece for piece in once if piece.place[0] == number]
        next(given.pieces(number, BadText("error")))
    assert {piece.split for piece in once if piece.place[0] == 0} == {"train"}


@SEEDED
@given(text=st.text(st.sampled_from("aé中🙂 \n"), min_size=1), fraction=st.floats(0.01, 0.99),
       size=st.integers(1, 20))
def test_a_tail_never_cuts_inside_a_character_and_loses_nothing(text, fraction, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE_BYTES", size)
        train, val = sides(plan({"one.txt": text}, split="tail", val_fraction=fraction))
    assert train + val == text
    assert 0 <= int(len(text.encode()) * (1 - fraction)) - len(train.encode()) < 4


def test_a_limit_on_tokens_and_a_tail_do_not_go_together():
    write("a.txt", "some text")
    for split in ("tail", "auto"):
        recipe = Recipe(sources=[{"path": "a.txt", "max_tokens": 5}], split=split)
        with pytest.raises(UserError, match=r"max_tokens and split=tail .* do not go together"):
            SplitPlan(Corpus(recipe, list_files(recipe.sources, Path("fetched"))))


# Mixtures


def test_a_mixture_is_split_source_by_source():
    for name, text in FILES.items():
        write(f"many/{name}", text)
    one = "".join(f"line {i}\n" for i in range(100))
    write("one.txt", one)
    write("two.jsonl", jsonl("a", "b"))
    sources = [{"path": path, "weight": 1} for path in ("many", "one.txt", "two.jsonl")]
    recipe = Recipe(sources=sources, val_fraction=0.25)
    given = SplitPlan(Corpus(recipe, list_files(recipe.sources, Path("fetched"))))
    found: dict[tuple[int, str], str] = {}
    for piece in pieces(given):
        source = given.corpus.files[piece.place[0]].source
        found[source, piece.split] = found.get((source, piece.split), "") + piece.text
    assert all(found[source, split] for source in range(3) for split in ("train", "val"))
    assert found[1, "train"] == one[:int(len(one) * 0.75)]
    held_out = held_out_names(FILES, 0.25, 0)
    assert found[0, "val"] == "".join(FILES[name] for name in FILES if name in held_out)
    plain = recipe.model_copy(update={"sources": [s.model_copy(update={"weight": None})
                                                  for s in recipe.sources]})
    assert isinstance(SplitPlan(Corpus(plain, given.corpus.files))._rules[30], ByName)
    assert isinstance(given._rules[30], ByPlace)  # a single document's tail


# Pieces


def test_pieces_say_where_documents_start_and_end(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 8)
    files = {"a.txt": "one\ntwo\nthree\nfour\nfive\n", "b.txt": "", "c.txt": "tiny",
             "d.jsonl": jsonl("alpha", "", "beta gamma delta epsilon")}
    found = pieces(plan(files, val_fraction=0.001))
    assert [piece.place for piece in found if not piece.text] == [
        (0, sum(piece.place[0] == 0 for piece in found) - 1), (1, 0), (2, 1),
        (3, sum(piece.place[0] == 3 for piece in found) - 1)]
    documents: list[str] = []
    for piece in found:
        if not piece.text:
            assert not piece.starts and not piece.ends
        elif piece.starts:
            documents.append(piece.text)
        else:
            documents[-1] += piece.text
    assert sorted(documents) == sorted([files["a.txt"], "tiny", "alpha",
                                        "beta gamma delta epsilon"])
    assert sum(piece.ends for piece in found) == 4 and len(found) > 10
    for before, after in pairwise(found):
        assert before.ends == (bool(before.text) and (after.starts or not after.text))
    assert [piece.place for piece in found] == sorted(piece.place for piece in found)


def test_a_document_that_is_cut_in_two_ends_and_starts_at_the_cut(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 8)
    found = pieces(plan({"a.txt": "word " * 20}, split="tail", val_fraction=0.5))
    edges = [(piece.split, piece.starts, piece.ends) for piece in found if piece.starts or
             piece.ends]
    assert edges == [("train", True, False), ("train", False, True), ("val", True, False),
                     ("val", False, True)]


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_what_was_stored_adds_up_to_the_sizes_of_the_files(policy, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 64)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 64)
    monkeypatch.setattr(streams, "SAMPLE_BYTES", 64)
    long = "".join(f"line {i * 7919 % 10007}\n" for i in range(300))
    files = {"a.txt": long, "b.txt.gz": gzip.compress(long.encode()), "c.txt": b"\xff",
             "d.jsonl": jsonl(*RECORDS), "e.jsonl": b"[]\n{}\n", "f.txt": "",
             "g.csv": "text\n" + long}
    given = plan(files, on_bad_text=policy, min_characters=3)
    for _ in range(2):
        for number, file in enumerate(given.corpus.files):
            found = pieces(given, range(number, number + 1))
            assert sum(piece.stored for piece in found) == file.size
            assert all(piece.stored >= 0 for piece in found)
            if file.name in ("a.txt", "d.jsonl", "g.csv"):
                assert sum(piece.stored > 0 for piece in found) > 3  # progress on the way


def test_a_file_is_not_credited_with_what_was_read_of_the_one_before(monkeypatch):
    import datasets
    monkeypatch.setattr(datasets, "load_dataset",
                        lambda *args, **fields: [{"text": "a"}, {"text": "b"}])
    monkeypatch.setattr(text_module, "PIECE_BYTES", 100)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 100)
    write("a.txt", "four " * 200)
    recipe = Recipe(sources=["a.txt", {"path": "owner/name", "format": "datasets"}],
                    split="documents")
    given = SplitPlan(Corpus(recipe, list_files(recipe.sources, Path("fetched"))))
    found = pieces(given)
    assert sum(piece.stored for piece in found if piece.place[0] == 0) == 1000
    assert [piece.stored for piece in found if piece.place[0] == 1] == [0, 0, 0]


def test_reading_from_some_file_on_gives_the_same_pieces():
    files = FILES | {"x.jsonl": jsonl(*RECORDS)}
    for split in ("documents", "tail"):
        whole = pieces(plan(files, split=split))
        for first in (1, 17, 30):
            assert pieces(plan(files, split=split), range(first, 31)) == [
                piece for piece in whole if piece.place[0] >= first]


def test_what_happened_to_documents_comes_with_the_next_piece_and_once():
    files = {"a.jsonl": b'{"text": "a"}\nx\n{"text": "b\xff"}\n{"text": "abc"}\ny\n',
             "b.txt": b"ab\xff", "c.txt": "c"}
    given = plan(files, on_bad_text="replace", max_characters=2, val_fraction=0.01)
    for _ in range(2):
        found = pieces(given)
        assert [(piece.text, dict(piece.tally.counts)) for piece in found] == [
            ("a", {}), ("b\ufffd", {"skipped": 1, "replaced": 1}),
            ("", {"too_long": 1, "skipped": 1}),
            ("", {"too_long": 1}), ("c", {}), ("", {})]
