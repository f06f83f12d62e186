"""What was worked out of a tokenizer.json is found again, and is what it was."""

from __future__ import annotations

import json

import pytest

from gpt.tokenizer import build_tokenizer, contents
from gpt.tokenizer.contents import contents_of
from tests.tokenizer.hub_tokenizers import AWKWARD, KINDS, added, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "WORTH_KEEPING", 0)
    return tmp_path / "cache/gpt-toolkit"


def never(*_):
    raise AssertionError("it is known")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_was_read_before_is_the_same(kind, tmp_path, monkeypatch, cache):
    make, eos = KINDS[kind]
    folder = write_folder(tmp_path / "t", make(), eos)
    first = build_tokenizer(str(folder))
    assert list(cache.glob("tokenizer-*"))
    monkeypatch.setattr(contents, "_worked_out", never)
    again = build_tokenizer(str(folder))
    assert type(again) is type(first) and again.fingerprint == first.fingerprint
    assert (again.specials, again.boundaries) == (first.specials, first.boundaries)
    for text in AWKWARD:
        text = first.writable(text)
        assert again.encode(text) == first.encode(text)
        assert again.encode_behind(text) == first.encode_behind(text)
        assert again.encode_after_control(text) == first.encode_after_control(text)
    ids = sorted(first.text_ids)
    assert [again.decode_bytes([i]) for i in ids] == [first.decode_bytes([i]) for i in ids]
    assert again.unwritable == first.unwritable
    assert again.encodes_in_pieces == first.encodes_in_pieces


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "unigram"])
def test_names_and_ids_are_found_without_the_vocabulary(kind, monkeypatch):
    definition = KINDS[kind][0]()
    text = json.dumps(definition)
    contents_of(text)
    monkeypatch.setattr(contents, "_worked_out", never)
    found = contents_of(text)
    vocab = definition["model"]["vocab"]
    names = vocab if isinstance(vocab, dict) else {name: i for i, (name, _) in enumerate(vocab)}
    assert {name: found.id_of(name) for name in names} == names
    assert {i: found.name_of(i) for i in names.values()} == {i: name for name, i in names.items()}
    assert found.id_of("no such token 中") is None


def test_another_file_is_read_anew_and_a_wrong_one_is_refused_each_time():
    definition = KINDS["gpt2"][0]()
    contents_of(json.dumps(definition))
    definition["added_tokens"].append(added(999, "<|other|>"))
    for _ in range(2):
        with pytest.raises(ValueError, match="has id 999"):
            contents_of(json.dumps(definition))
    definition["added_tokens"][-1]["id"] = definition["added_tokens"][0]["id"] + 1
    assert "<|other|>" in contents_of(json.dumps(definition)).specials


def test_small_files_leave_nothing_in_the_cache(cache, monkeypatch):
    text = json.dumps(KINDS["gpt2"][0]())
    monkeypatch.setattr(contents, "WORTH_KEEPING", len(text) + 1)
    contents_of(text)
    assert not cache.exists()
    monkeypatch.setattr(contents, "WORTH_KEEPING", len(text))
    contents_of(text)
    assert len(list(cache.iterdir())) == 1
