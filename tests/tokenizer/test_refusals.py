"""Hugging Face folders that cannot be read: one line, whatever stands in them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from gpt.errors import UserError
from gpt.tokenizer import build_tokenizer
from tests.tokenizer.hub_tokenizers import (
    gpt2,
    llama2,
    llama3,
    starcoder,
    template,
    two_files,
    unigram,
    write,
    write_folder,
)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("tokenizer.json", "[1]", "it holds no model"),
    ("tokenizer.json", "{", "cannot read the tokenizer in"),
    ("tokenizer.json", "[" * 100_000, "cannot read the tokenizer in"),
    ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
     "its model is WordLevel; BPE and Unigram can be read"),
    ("tokenizer_config.json", "[]", "holds no JSON object"),
    ("tokenizer_config.json", '{"eos_token": 5}', "a token's name must be text, not 5"),
    ("tokenizer_config.json", '{"eos_token": "<eos>"}',
     "its eos_token '<eos>' is no token of its tokenizer"),
    ("tokenizer_config.json", "{}", "does not say which token ends a text: it needs an eos_token"),
    ("tokenizer_config.json", '{"eos_token": "<|endoftext|>", "chat_template": "\\ud800"}',
     "it has half of a surrogate pair"),
    ("generation_config.json", '{"eos_token_id": 601}', "its eos_token_id 601 is no token's id"),
    ("generation_config.json", '{"eos_token_id": [true]}', "eos_token_id True is no token's id"),
    ("generation_config.json", "nul", "is damaged: it is not valid JSON")])
def test_a_file_that_cannot_be_read_is_one_line(name, value, message, tmp_path):
    write_folder(tmp_path, gpt2(), "<|endoftext|>")
    (tmp_path / name).write_text(value)
    with pytest.raises(UserError) as caught:
        build_tokenizer(str(tmp_path))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def change(definition: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    copied = json.loads(json.dumps(definition))
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return copied


HUGE = 2**31


@pytest.mark.parametrize(("definition", "message"), [
    (change(gpt2(), "model", "vocab", "zz", to=10_000_000), "10000000 is beyond all vocabularies"),
    (change(gpt2(), "model", "vocab", "zz", to=5), "every token needs an id of its own"),
    (change(gpt2(), "model", "vocab", "zz", to=2**70), "cannot read the tokenizer"),
    (change(starcoder(), "added_tokens", 0, "id", to=HUGE), f"has id {HUGE}, where `tokenizers`"),
    (change(gpt2(), "model", "continuing_subword_prefix", to="##"), "continuing_subword_prefix"),
    (change(gpt2(), "model", "end_of_word_suffix", to="</w>"), "end_of_word_suffix"),
    (change(starcoder(), "decoder", to={"type": "WordPiece", "prefix": "#", "cleanup": True}),
     "its decoder is WordPiece; ByteLevel, Metaspace"),
    (change(llama2(), "decoder", to=None), "its decoder is missing"),
    (change(gpt2(), "post_processor", to={"type": "BertProcessing", "sep": ["a", 0],
                                          "cls": ["a", 0]}), "BertProcessing is none of a"),
    (change(gpt2(), "post_processor", to={**template("a", 0), "single": [
        {"SpecialToken": {"id": "a", "type_id": 0}}] * 2}), "puts 2 tokens before a text"),
    (change(gpt2(), "added_tokens", 0, "special", to="yes"), "cannot read the tokenizer"),
    (change(gpt2(), "pre_tokenizer", to={"type": "Split", "pattern": {"Regex": "("},
                                         "behavior": "Isolated", "invert": False}),
     "unmatched parenthesis"),
    (change(llama2(), "normalizer", to={"prepend": "▁"}), "it lacks 'type'"),
    (change(gpt2(), "model", to=None), "it holds no model")])
def test_a_definition_that_cannot_be_used_is_one_line(definition, message, tmp_path):
    write_folder(tmp_path, definition, "</s>" if "▁a" in str(definition) else "<|endoftext|>")
    with pytest.raises(UserError, match=r"cannot read|post-processor|puts 2") as caught:
        build_tokenizer(str(tmp_path))
    assert message in str(caught.value)


HOSTILE = [None, [], {}, "x", "", -1, HUGE, 2**70, 1.5, True, {"type": "Sequence"}, [None]]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value of a definition stands, without most of its vocabulary."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value)
                 if isinstance(value, list) else ())
    return [place for key, inner in items[:24]
            for place in [(*at, key), *places(inner, (*at, key))]]


@pytest.mark.parametrize("make", [llama2, llama3, unigram])
def test_whatever_stands_at_a_place_it_is_a_tokenizer_or_one_error(make, tmp_path):
    definition = make()
    folder = write_folder(tmp_path, definition, "</s>", bos_token="<s>")
    write(folder, "generation_config.json", {"eos_token_id": 1})
    refused = 0
    for number, place in enumerate(places(definition)):
        write(folder, "tokenizer.json",
              change(definition, *place, to=HOSTILE[number % len(HOSTILE)]))
        try:
            tokenizer = build_tokenizer(str(folder))
            tokenizer.decode(tokenizer.encode_prompt(b"a \xff"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(("files", "message"), [
    (["tokenizer.model"], "has neither a tokenizer.json nor GPT-2's vocab.json and merges.txt; if "
     "it is another kind of tokenizer, open it once with transformers' AutoTokenizer, and its "
     "save_pretrained(FOLDER) writes a tokenizer.json"),
    (["vocab.json"], "has neither a tokenizer.json nor GPT-2's vocab.json and merges.txt"),
    ([], "unknown tokenizer")])
def test_a_folder_without_the_files_is_told_how_to_get_them(files, message, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError) as caught:
        build_tokenizer(str(tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize("settings", [{"tokenizer_class": "Qwen2Tokenizer"}, {"more": True}])
def test_two_files_of_another_kind_than_gpt2s_are_refused(settings, tmp_path):
    two_files(tmp_path, **settings)
    if "more" in settings:
        write(tmp_path, "added_tokens.json", {"<x>": 601})
    with pytest.raises(UserError, match="but not of GPT-2's own kind"):
        build_tokenizer(str(tmp_path))


def test_a_link_out_of_the_folder_is_refused_but_for_the_hubs_own_cache(tmp_path):
    write_folder(tmp_path / "other", gpt2(), "<|endoftext|>")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/tokenizer.json").symlink_to("../other/tokenizer.json")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        build_tokenizer(str(tmp_path / "folder"))

    cache = tmp_path / "models--x"
    write_folder(cache / "blobs", gpt2(), "<|endoftext|>")
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert build_tokenizer(str(snapshot)).end_of_text == 600


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle, "load", lambda *args: pytest.fail("unpickled"))
    write_folder(tmp_path, llama2(), "</s>")
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(Library))
    assert build_tokenizer(str(tmp_path)).end_of_text == 2


def test_a_name_that_the_pattern_takes_for_ever_to_cut_is_one_line(tmp_path):
    definition, name = gpt2(), "a" * 300 + "!"
    slow = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
            "invert": False}
    definition["model"]["vocab"][name] = 1 + max(definition["model"]["vocab"].values())
    folder = write_folder(tmp_path, definition, name)
    assert build_tokenizer(str(folder)).encode("a")
    definition["pre_tokenizer"] = {"type": "Sequence",
                                   "pretokenizers": [slow, definition["pre_tokenizer"]]}
    write_folder(tmp_path, definition, name)
    with pytest.raises(UserError, match=r"cannot read the tokenizer in .*: it cannot encode 'a+!'"):
        build_tokenizer(str(folder))
