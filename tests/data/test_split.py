"""Which text is held out for validation, by name or from the end, and where documents begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sources
from data.recipe import Recipe
from data.sources import BadText, list_documents
from data.split import Piece, SplitPlan
from gpt.holdout import held_out_names

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)
NAMES = [f"file-{i}.txt" for i in range(400)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@SEEDED
@given(st.sets(st.text(max_size=5), min_size=1), st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_both_sides_get_something_whenever_there_are_two_names(names, fraction, seed):
    held_out = held_out_names(names, fraction, seed)
    assert held_out < names
    assert bool(held_out) == (len(names) > 1)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_about_the_asked_share_of_names_is_held_out(fraction):
    """Of 400 names within 5 standard deviations of a binomial draw."""
    expected, deviation = 400 * fraction, (400 * fraction * (1 - fraction)) ** 0.5
    assert abs(len(held_out_names(NAMES, fraction, seed=1)) - expected) < 5 * deviation


def test_adding_names_moves_none_of_the_others():
    few = held_out_names(NAMES[:100], 0.2, seed=1)
    assert few == held_out_names(reversed(NAMES), 0.2, seed=1) & set(NAMES[:100])


def test_another_seed_holds_out_other_names_and_a_larger_share_holds_out_more():
    held_out = held_out_names(NAMES, 0.2, seed=1)
    assert held_out != held_out_names(NAMES, 0.2, seed=2)
    assert held_out < held_out_names(NAMES, 0.4, seed=1)


def test_a_name_that_is_not_unicode_has_a_place_and_no_names_have_none():
    assert held_out_names(["a\udcff", "b"], 0.5, 0) < {"a\udcff", "b"}
    assert held_out_names([], 0.5, 0) == set()


def plan(files: dict[str, str], **recipe) -> SplitPlan:
    for name, text in files.items():
        path = Path("corpus") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    settings = {"sources": ["corpus"], "split": "documents", "val_fraction": 0.25} | recipe
    return SplitPlan(Recipe(**settings), list_documents(["corpus"]))


def pieces(given: SplitPlan) -> list[Piece]:
    return list(given.pieces(BadText("error")))


def texts(given: SplitPlan, split: str) -> list[str]:
    """The documents of one split, put together again by where pieces start and end."""
    documents, current = [], None
    for piece in pieces(given):
        if piece.split != split:
            continue
        assert piece.starts == (current is None)
        current = (current or "") + piece.text
        if piece.ends:
            documents.append(current)
            current = None
    assert current is None
    return documents


FILES = {f"{i:02}.txt": f"document {i}\n" * 10 for i in range(30)}


def test_documents_stay_on_their_side_when_others_are_added():
    before = plan(dict(list(FILES.items())[:15]))
    train, val = texts(before, "train"), texts(before, "val")
    after = plan(FILES)
    assert len(train) + len(val) == 15 and train and val
    assert set(train) < set(texts(after, "train"))
    assert set(val) <= set(texts(after, "val"))
    assert len(texts(after, "train")) + len(texts(after, "val")) == 30


def test_the_split_follows_the_seed():
    assert texts(plan(FILES, seed=1), "val") != texts(plan(FILES, seed=2), "val")


@pytest.mark.parametrize("split", ["tail", "auto"])
def test_the_tail_of_a_single_document_is_held_out(split):
    text = "".join(f"line {i}\n" for i in range(100))
    given = plan({"one.txt": text}, split=split)
    [train], [val] = texts(given, "train"), texts(given, "val")
    assert train + val == text
    assert len(train) == int(len(text) * 0.75)


def test_several_documents_are_split_whole_unless_the_tail_is_asked_for():
    assert all(text in FILES.values() for text in texts(plan(FILES, split="auto"), "val"))
    tail = plan(FILES, split="tail")
    everything = "".join(FILES.values())
    cut = int(len(everything) * 0.75)
    assert "".join(texts(tail, "train")) == everything[:cut]
    assert "".join(texts(tail, "val")) == everything[cut:]
    assert len(texts(tail, "train")) + len(texts(tail, "val")) == 31  # one stands on both sides


@SEEDED
@given(text=st.text(st.sampled_from("aé中🙂 \n"), min_size=1), fraction=st.floats(0.01, 0.99),
       size=st.integers(1, 20))
def test_a_tail_never_cuts_inside_a_character_and_loses_nothing(text, fraction, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", size)
        given_plan = plan({"one.txt": text}, split="tail", val_fraction=fraction)
        train = "".join(texts(given_plan, "train"))
        val = "".join(texts(given_plan, "val"))
    assert train + val == text
    assert 0 <= int(len(text.encode()) * (1 - fraction)) - len(train.encode()) < 4


def test_pieces_say_where_documents_start_and_end(monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 8)
    files = {"a.txt": "one\ntwo\nthree\nfour\nfive\n", "b.txt": "", "c.txt": "tiny"}
    found = pieces(plan(files, val_fraction=0.01))
    assert "".join(piece.text for piece in found) == "".join(files.values())
    assert [piece.starts for piece in found] == [True] + [False] * (len(found) - 2) + [True]
    assert [piece.ends for piece in found] == [False] * (len(found) - 2) + [True, True]
    assert len(found) > 3
