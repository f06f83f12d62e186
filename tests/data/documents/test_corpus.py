"""Documents of a corpus: what they are, and cleaning that counts everything once."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.documents.corpus import Corpus, SeenTexts
from data.sources import text as text_module
from data.sources.bad_text import BadText
from gpt.errors import UserError, WorkFailed
from tests.data.sources.sample_files import corpus_of, documents, write

SEEDED = settings(max_examples=150, derandomize=True, database=None, deadline=None)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_jsonl(path: str, *texts: str) -> None:
    write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def tally_of(corpus: Corpus) -> dict[str, int]:
    """Counts after everything was read once."""
    bad_text = BadText(corpus.recipe.on_bad_text)
    documents(corpus, bad_text)
    return dict(bad_text.tally.counts)


def test_a_document_is_a_text_file_or_a_record_and_can_be_read_again():
    write("c/a.txt", "alpha")
    write_jsonl("c/b.jsonl", "beta", "gamma")
    corpus = corpus_of("c")
    for _ in range(2):
        assert documents(corpus) == ["alpha", "beta", "gamma"]
    places = [document.place for i in range(2)
              for document in corpus.documents(i, BadText("error"))]
    assert places == [(0, 0), (1, 0), (1, 1)]
    assert corpus.stored_bytes == sum(path.stat().st_size for path in Path("c").iterdir())


def test_reading_from_some_file_on_gives_what_it_gives_in_the_whole():
    for name in "abc":
        write_jsonl(f"c/{name}.jsonl", f"{name}1", f"{name}2")
    corpus = corpus_of("c")
    assert [d.name for d in corpus.documents(2, BadText("error"))] == [
        d.name for i in range(3) for d in corpus.documents(i, BadText("error"))][4:]


def test_a_size_that_only_reading_would_tell_is_unknown():
    write("a.txt")
    corpus = corpus_of("a.txt")
    assert corpus.stored_bytes == 4
    files = [*corpus.files, *corpus_of("set", format="datasets").files]
    assert Corpus(corpus.recipe, files).stored_bytes is None


def test_records_are_named_by_their_text_alone():
    write_jsonl("a.jsonl", "same", "other", "same")
    write("b.csv", "text\nsame\n")
    names = [d.name for i, corpus in enumerate([corpus_of("a.jsonl", "b.csv")] * 2)
             for d in corpus.documents(i, BadText("error"))]
    assert names[0] == names[2] == names[3] != names[1]


# Normalisation


LETTERS = ["e", "\u0301", "\u00e9", "\u1100", "\u1161", "\u11a8", "\uac00", "\u212b", "\ufb01",
           " ", "\n", "\u00a0", "\u00a8", "\u0958", "\u2474", "x", "1", "\u0323", "\u0307", ".",
           "\u3000", "\uff21", "\u0344", "\u1e9b\u0323"]


@SEEDED
@given(text=st.one_of(st.lists(st.sampled_from(LETTERS), max_size=80).map("".join),
                      st.lists(st.text(max_size=5), max_size=20).map(" ".join)),
       size=st.integers(5, 20), form=st.sampled_from(["NFC", "NFKC"]))
@example(text="x\u0958 \u0301" * 8, size=5, form="NFC")
@example(text="a\u2474\n" * 9, size=5, form="NFKC")
def test_pieces_of_a_normalized_text_are_pieces_of_the_normalized_whole(text, size, form):
    text = text.removeprefix("\ufeff")
    if len(text) > text_module.MOST_PIECES * size:  # a cut might be forced
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE_BYTES", size)
        write("a.txt", text)
        write_jsonl("b.jsonl", text)
        corpus, whole = corpus_of("a.txt", "b.jsonl", normalize=form), unicodedata.normalize(
            form, text)
        for i in range(2):
            for document in corpus.documents(i, BadText("error")):
                pieces = list(document.pieces(BadText("error")))
                assert "".join(pieces) == whole
                for before, after in pairwise(pieces):
                    assert ((before[-1].isalnum() and after[0].isspace())
                            or (before[-1] == "\n" and after[0].isalnum()))
    assert documents(corpus_of("a.txt"))[0] == text


def test_only_documents_that_normalisation_changes_are_counted_and_each_once(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 8)
    write_jsonl("a.jsonl", "cafe\u0301 " * 20, "caf\u00e9", "cafe")
    write("b.txt", "cafe\u0301 and more cafe\u0301 and more")
    for cleaning in ({}, {"min_characters": 1}):  # which reads documents twice
        corpus = corpus_of("a.jsonl", "b.txt", normalize="NFC", **cleaning)
        assert tally_of(corpus) == {"normalized": 2}
    assert tally_of(corpus_of("a.jsonl", "b.txt")) == {}


def test_records_that_normalisation_makes_equal_have_one_name():
    write_jsonl("a.jsonl", "cafe\u0301", "caf\u00e9")
    for form, names in (("NFC", 1), ("none", 2)):
        corpus = corpus_of("a.jsonl", normalize=form)
        assert len({d.name for d in corpus.documents(0, BadText("error"))}) == names


# Length


def test_documents_that_are_too_short_or_too_long_are_left_out_and_counted_once(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 2)
    write_jsonl("a.jsonl", "éé", "ééé", "ééééé", "éééééé")
    write("b.txt", "é é é é")
    corpus = corpus_of("a.jsonl", "b.txt", min_characters=3, max_characters=5)
    assert documents(corpus) == ["ééé", "ééééé"]
    assert tally_of(corpus) == {"too_short": 1, "too_long": 2}
    assert tally_of(corpus_of("a.jsonl", min_characters=2, max_characters=6)) == {}


def test_length_is_that_of_the_normalized_text():
    write_jsonl("a.jsonl", "e\u0301" * 3, "\ufb01" * 3)
    assert documents(corpus_of("a.jsonl", normalize="NFC", max_characters=3)) == [
        "é" * 3, "\ufb01" * 3]
    assert documents(corpus_of("a.jsonl", normalize="NFKC", min_characters=4)) == ["fi" * 3]


def test_empty_texts_and_texts_that_are_skipped_are_no_short_documents():
    write_jsonl("a.jsonl", "", "long enough")
    write("b.txt", "")
    write("c.txt", b"\xff")
    corpus = corpus_of("a.jsonl", "b.txt", "c.txt", min_characters=5, on_bad_text="skip")
    assert tally_of(corpus) == {"skipped": 1}


def test_bad_text_is_counted_once_though_cleaning_reads_twice():
    write("a.txt", b"caf\xe9 and more")
    write("b.jsonl", b'{"text": "x\xff"}\n{"text": 3}\n')
    for policy, counts in (("replace", {"replaced": 2, "skipped": 1}), ("skip", {"skipped": 3})):
        for cleaning in ({}, {"min_characters": 1, "normalize": "NFKC"}):
            assert tally_of(corpus_of("a.txt", "b.jsonl", on_bad_text=policy, **cleaning)) == counts
    with pytest.raises(UserError, match=r"a\.txt, line 1"):
        documents(corpus_of("a.txt", min_characters=1))


# Duplicates


@pytest.fixture
def seen():
    texts = SeenTexts(Path("seen.sqlite"))
    yield texts
    texts.close()


def test_of_equal_texts_the_first_stays_across_files_and_formats(seen):
    write_jsonl("a.jsonl", "one", "two", "one")
    write("b.txt", "two")
    write("c.csv", "text\nthree\none\n")
    corpus = corpus_of("a.jsonl", "b.txt", "c.csv", seen=seen, drop_duplicates=True)
    for _ in range(3):  # as for the split, the tokenizer and the shards
        assert documents(corpus) == ["one", "two", "three"]
        assert tally_of(corpus) == {"duplicates": 3}
    assert len(documents(corpus_of("a.jsonl", "b.txt", "c.csv"))) == 6


def test_equal_means_to_the_letter_after_normalisation(seen):
    write_jsonl("a.jsonl", "caf\u00e9", "cafe\u0301", "Caf\u00e9", "caf\u00e9 ")
    corpus = corpus_of("a.jsonl", seen=seen, drop_duplicates=True, normalize="NFC")
    assert documents(corpus) == ["café", "Café", "café "]
    assert tally_of(corpus) == {"duplicates": 1}


def test_texts_are_equal_however_they_are_cut_into_pieces(seen, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 8)
    write("a.txt", "word after word after word after word")
    write_jsonl("b.jsonl", "word after word after word after word")
    assert tally_of(corpus_of("a.txt", "b.jsonl", seen=seen, drop_duplicates=True)) == {
        "duplicates": 1}


def test_what_is_left_out_for_its_length_is_no_first_one(seen):
    write_jsonl("a.jsonl", "x", "x")
    write_jsonl("b.jsonl", "", "")
    corpus = corpus_of("a.jsonl", "b.jsonl", seen=seen, drop_duplicates=True, min_characters=2)
    assert tally_of(corpus) == {"too_short": 2}


def test_to_be_told_the_same_document_twice_is_no_duplicate(seen):
    assert seen.is_first(b"1" * 16, (0, 5))
    assert seen.is_first(b"1" * 16, (0, 5))
    assert not seen.is_first(b"1" * 16, (0, 6)) and not seen.is_first(b"1" * 16, (1, 5))
    assert seen.is_first(b"2" * 16, (1, 5))


def test_what_is_saved_is_known_afterwards_and_what_is_not_is_forgotten():
    texts = SeenTexts(Path("seen.sqlite"))
    texts.is_first(b"1" * 16, (0, 0))
    texts.save()
    texts.is_first(b"2" * 16, (0, 1))
    texts.close()
    again = SeenTexts(Path("seen.sqlite"))
    assert not again.is_first(b"1" * 16, (0, 9)) and again.is_first(b"2" * 16, (0, 9))
    again.close()


def test_a_disk_that_is_full_or_a_file_that_is_damaged_is_one_line(seen, monkeypatch):
    class Full:
        def execute(self, *args):
            raise sqlite3.OperationalError("database or disk is full")

        commit = execute

        def close(self):
            pass

    whole, seen._file = seen._file, Full()
    for act in (lambda: seen.is_first(b"1" * 16, (0, 0)), seen.save):
        with pytest.raises(WorkFailed, match=r"^seen\.sqlite: database or disk is full$"):
            act()
    whole.close()
    Path("damaged.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(WorkFailed, match=r"^damaged\.sqlite: file is not a database$"):
        SeenTexts(Path("damaged.sqlite"))
