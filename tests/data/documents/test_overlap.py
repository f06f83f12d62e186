"""What an evaluation text shares with training is found wherever it stands, and nothing else is."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.documents import overlap
from data.documents.overlap import MOST_LISTED, Hasher, N
from data.preparation import prepare
from gpt.errors import UserError
from gpt.files import read_json
from gpt.shards import verify_dataset
from tests.data.corpora import folder_bytes, in_small_pieces, recipe, write_jsonl

SEEDED = settings(max_examples=60, derandomize=True, database=None, deadline=None)
PLANTED = ["Once", "upon", "a", "midnight", "dreary,", "while", "I", "pondered,", "weak", "and",
           "weary,", "over", "many"]
assert len(PLANTED) == N


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_small_pieces(monkeypatch)


def noise(words: int, seed: int) -> str:
    """Words that stand nowhere else."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10**9)}" for _ in range(words))


def report(training: list[str], evaluation: str, **changes: Any) -> dict[str, Any]:
    """overlap.json for an evaluation file of one's own, which is no part of the corpus."""
    write_jsonl(Path("train.jsonl"), training)
    Path("mine.txt").write_text(evaluation, encoding="utf-8")
    prepare(recipe(**{"sources": ["train.jsonl"], "tokenizer": "byte", "split": "tail",
                      "overlap_with": "mine.txt", **changes}))
    return read_json(Path("out/overlap.json"))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_thirteen_shared_words_are_found_in_other_case_and_punctuation(tokenizer):
    shouted = "«" + "! -- ".join(PLANTED).upper() + "»"
    training = [noise(30, 0), f"{noise(50, 1)} {shouted} {noise(50, 2)}", noise(300, 3)]
    found = report(training, f"{noise(40, 4)} {' '.join(PLANTED)} {noise(40, 5)}",
                   tokenizer=tokenizer)
    assert (found["documents"], found["documents_with_overlap"]) == (1, 1)
    assert (found["ngrams"], found["ngrams_shared"]) == (93 - N + 1, 1)
    assert (found["training_documents_with_overlap"], found["one_in"]) == (1, 1)
    assert found["most"] == [{
        "document": "mine.txt:1", "ngrams": 81, "shared": 1,
        "first": "once upon a midnight dreary while i pondered weak and weary over many"}]
    assert verify_dataset(Path("out")) == []


def test_twelve_shared_words_are_not_found():
    training = [f"{noise(50, 1)} {' '.join(PLANTED[:12])} {noise(50, 2)}", noise(300, 3)]
    found = report(training, f"{noise(40, 4)} {' '.join(PLANTED)} {noise(40, 5)}")
    assert (found["documents_with_overlap"], found["ngrams_shared"], found["most"]) == (0, 0, [])
    assert found["training_documents_with_overlap"] == 0


def test_words_that_stand_apart_or_in_two_documents_are_not_found():
    halves = [" ".join(PLANTED[:7]), " ".join(PLANTED[7:])]
    training = [halves[0], halves[1], f"{halves[0]} and {halves[1]}", noise(300, 3)]
    assert report(training, " ".join(PLANTED))["documents_with_overlap"] == 0


@pytest.mark.parametrize("tokens_at_once", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_it_is_found_across_the_borders_of_pieces(tokens_at_once, tokenizer, monkeypatch):
    monkeypatch.setattr(overlap, "_TOKENS_AT_ONCE", tokens_at_once)
    words = [*PLANTED[:5], "Straße", "ΟΔΟΣ", "ǅ", "東京", "naïve", *PLANTED[10:]]
    training = [f"{noise(5, 1)} {' '.join(words)} {noise(5, 2)}", noise(90, 3)]
    found = report(training, " ".join(words), tokenizer=tokenizer)
    assert (found["ngrams"], found["ngrams_shared"]) == (1, 1)


@SEEDED
@given(text=st.text(st.sampled_from("aB. \nÉσΣß中_'İ-7"), max_size=120), cuts=st.lists(
    st.integers(0, 120), max_size=6))
def test_ngrams_depend_on_no_piece_borders(text, cuts):
    cuts = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    whole, pieced = (np.concatenate([g.hashes for g in Hasher().grams(t)])
                     for t in ([text], pieces))
    assert pieced.tolist() == whole.tolist()


def test_ngrams_are_told_apart_by_every_word_and_its_place():
    words = [f"w{i}" for i in range(N)]
    swapped = [words[1], words[0], *words[2:]]
    others = [[*words[:i], "x", *words[i + 1:]] for i in range(N)]
    hashes = [int(next(Hasher().grams([" ".join(w) + "."])).hashes[0])
              for w in (words, swapped, *others)]
    assert len(set(hashes)) == N + 2


def test_the_validation_split_can_be_compared():
    texts = [noise(40, i) for i in range(60)] + [f"{' '.join(PLANTED)} {i}" for i in range(10)]
    write_jsonl(Path("a.jsonl"), texts)
    dataset = prepare(recipe(sources=["a.jsonl"], tokenizer="byte", split="documents",
                             val_fraction=0.3, overlap_with="validation"))
    found = read_json(Path("out/overlap.json"))
    held_out = dataset.manifest.splits["val"].documents
    assert found["evaluation"] == "validation" and found["documents"] == held_out
    assert 0 < found["documents_with_overlap"] < 10
    assert (found["documents_with_overlap"] + found["training_documents_with_overlap"]) == 10


def test_it_is_the_same_for_any_number_of_processes():
    texts = [noise(20, i % 9) for i in range(60)]
    for workers in (1, 3):
        assert report(texts, noise(20, 3), workers=workers)["ngrams_shared"] == 8
        Path("out").rename(f"out{workers}")
    assert folder_bytes("out1") == folder_bytes("out3")


@pytest.mark.parametrize("most", [40, 400, 4000])
def test_of_too_many_every_kth_is_looked_for(most, monkeypatch):
    evaluation = [noise(100, i) for i in range(20)]
    training = [*evaluation, noise(500, 99)]
    everything = report(training, " . ".join(evaluation))
    assert everything["ngrams_shared"] > 0.85 * everything["ngrams"]
    assert everything["one_in"] == 1
    monkeypatch.setattr(overlap, "MOST_NGRAMS", most)
    monkeypatch.setattr(overlap, "_TOKENS_AT_ONCE", 100)
    Path("out").rename("before")
    sampled = report(training, " . ".join(evaluation))
    k = sampled["one_in"]
    assert k == {40: 64, 400: 8, 4000: 1}[most] and sampled["ngrams"] <= most
    assert abs(sampled["ngrams"] - everything["ngrams"] / k) < 4 * (everything["ngrams"] / k)**0.5
    assert sampled["ngrams_shared"] > 0.7 * sampled["ngrams"]


def test_the_list_of_documents_ends_somewhere_and_its_count_does_not(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_LISTED", 3)
    texts = [f"{noise(20, i)} {noise(20, 100 + i)}" for i in range(12)]
    write_jsonl(Path("train.jsonl"), [noise(20, i) for i in range(12)] + texts[7:9] + [
        noise(200, 999)])
    write_jsonl(Path("mine.jsonl"), texts)
    prepare(recipe(sources=["train.jsonl"], tokenizer="byte", split="tail",
                   overlap_with="mine.jsonl"))
    found = read_json(Path("out/overlap.json"))
    assert found["documents_with_overlap"] == 12 and MOST_LISTED == 100
    assert [entry["document"] for entry in found["most"]] == [
        "mine.jsonl:8", "mine.jsonl:9", "mine.jsonl:1"]


def test_an_evaluation_without_thirteen_words_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("data.preparation.make_shards", lambda *args: pytest.fail("too late"))
    with pytest.raises(UserError, match=r"overlap_with=mine\.txt: no document there has 13 words"):
        report([noise(300, 3)], " ".join(PLANTED[:12]))
    with pytest.raises(UserError, match="the source none is no file or folder"):
        report([noise(300, 3)], "", overlap_with="none")
    Path("bad.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"bad\.txt, line 1: the text is not UTF-8"):
        report([noise(300, 3)], "", overlap_with="bad.txt")
    assert not list(Path().glob("out*"))


def test_a_validation_split_without_thirteen_words_is_a_report_of_nothing():
    write_jsonl(Path("a.jsonl"), [noise(5, i) for i in range(40)])
    prepare(recipe(sources=["a.jsonl"], tokenizer="byte", overlap_with="validation"))
    found = read_json(Path("out/overlap.json"))
    assert (found["ngrams"], found["documents_with_overlap"]) == (0, 0) and found["documents"] > 0


def test_a_text_without_blanks_is_read_in_words_of_bounded_length():
    """One word that went on and on would be kept whole, and read again for every piece."""
    pieces = ["x" * 1000] * 5000
    grams = list(Hasher().grams(pieces))
    assert len(grams) == 5001 and max(len(word) for g in grams for word in g.words) < 6000
