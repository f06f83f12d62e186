"""Tokenizers from Hugging Face folders: transformers' ids, and one line for what cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizer import JsonTokenizer, RankTokenizer, Tokenizer, build_tokenizer, read_ranks
from gpt.tokenizer.alphabet import name_of, token_of
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import BPE_PATTERN, HUGGING_FACE
from tests.tiny import SHARED
from tests.tokenizer.hub_tokenizers import (
    AWKWARD,
    KINDS,
    added,
    gpt2,
    llama3,
    qwen,
    template,
    their_ids,
    theirs,
    two_files,
    write,
    write_folder,
)

SEEDED = settings(max_examples=40, derandomize=True, database=None, deadline=None,
                  suppress_health_check=[HealthCheck.too_slow])
RANKED = {"gpt2", "control_first", "llama3"}
TEXTS = st.text() | st.lists(st.sampled_from(
    ["a", " ", "  ", "\n", "\r\n", "é", "e\u0301", "中", "🙂", "'s", "12", "_", "</s>", "<think>",
     "<|endoftext|>", "▁", "Ġ", "<0x41>", "\u00a0", "def", "\x00"])).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(our tokenizer, transformers' own) of a folder of each kind."""
    make, eos = KINDS[request.param]
    folder = write_folder(tmp_path_factory.mktemp("hub") / request.param, make(), eos)
    return build_tokenizer(str(folder)), theirs(folder)


def spelling_unigram(ours: Tokenizer, text: str) -> bool:
    """Whether transformers makes a control token of a text even where it shall not."""
    return isinstance(ours, JsonTokenizer) and "Unigram" in ours.definition and "</s>" in text


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_texts_have_transformers_ids(both, text):
    ours, other = both
    if not spelling_unigram(ours, text):
        assert ours.encode(text) == their_ids(other, text)


@SEEDED
@given(text=TEXTS)
@example(text=" \u0301a")
def test_any_text_has_transformers_ids(both, text):
    ours, other = both
    text = ours.writable(text)
    if not spelling_unigram(ours, text):
        assert ours.encode(text) == their_ids(other, text)


@SEEDED
@given(text=TEXTS)
@example(text="</s><unk><s>a</s>")
def test_no_text_becomes_a_control_token(both, text):
    ours, _ = both
    unknown = {ours.specials[name] for name in ("<unk>",) if name in ours.specials}
    assert not set(ours.encode(ours.writable(text))) & set(ours.specials.values()) - unknown


@pytest.mark.parametrize("kind", KINDS)
def test_tiktoken_does_the_work_where_it_can(kind, tmp_path):
    make, eos = KINDS[kind]
    ours = build_tokenizer(str(write_folder(tmp_path, make(), eos)))
    assert isinstance(ours, RankTokenizer if kind in RANKED else JsonTokenizer)
    assert ours.spec == str(tmp_path)
    assert ours.specials[eos] == ours.end_of_text


def without_tiktoken(definition: dict[str, Any], folder: Path) -> bool:
    """Whether a definition with GPT-2's pattern is left to `tokenizers`, with the same ids."""
    ours = build_tokenizer(str(write_folder(folder, definition, "<|endoftext|>")))
    other = theirs(folder)
    assert all(ours.encode(text) == their_ids(other, text) for text in AWKWARD)
    return isinstance(ours, JsonTokenizer)


def test_merges_in_another_order_than_the_ids_are_left_to_tokenizers(tmp_path):
    definition = gpt2()
    assert not without_tiktoken(definition, tmp_path / "a")
    vocab = definition["model"]["vocab"]
    in_order = [name for name, i in sorted(vocab.items(), key=lambda item: item[1]) if i < 600]
    first, second = in_order[300], in_order[500]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    assert without_tiktoken(definition, tmp_path / "b")


def test_a_token_without_a_merge_is_left_to_tokenizers_unless_merges_are_ignored(tmp_path):
    definition = gpt2()
    model = definition["model"]
    del model["vocab"]["<|endoftext|>"]
    model["vocab"]["zqzq"] = 600
    definition["added_tokens"] = [added(601, "<|endoftext|>")]
    assert without_tiktoken(definition, tmp_path / "a")
    model["ignore_merges"] = True
    assert not without_tiktoken(definition, tmp_path / "b")


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split(behavior: str, invert: bool) -> dict[str, Any]:
    pattern = {"Regex": HUGGING_FACE[BPE_PATTERN]}
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert},
        {**LEVEL, "use_regex": False}]}


@pytest.mark.parametrize(("behavior", "invert", "known"), [
    ("Isolated", False, True), ("Removed", True, True), ("MergedWithNext", False, False)])
def test_a_pattern_counts_as_known_where_it_keeps_its_pieces(behavior, invert, known, tmp_path):
    definition = {**gpt2(), "pre_tokenizer": split(behavior, invert)}
    assert without_tiktoken(definition, tmp_path) != known


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {**LEVEL, "add_prefix_space": True}},
    {"pre_tokenizer": {**LEVEL, "use_regex": False}},
    {"normalizer": {"type": "Lowercase"}},
    {"added_tokens": [added(600, "<|endoftext|>"), added(601, "z def", special=False)]}])
def test_what_tiktoken_does_not_know_is_left_to_tokenizers(change, tmp_path):
    assert without_tiktoken({**gpt2(), **change}, tmp_path)


@pytest.mark.parametrize("names", [
    {name_of(b"\x02"): None},  # a byte without a token
    {"中": 900},  # a name that spells no bytes
    {"a" * 1025: 900}])
def test_a_vocabulary_that_tiktoken_does_not_know_is_left_to_tokenizers(names, tmp_path):
    definition = gpt2()
    model = definition["model"]
    vocab = {name: i for name, i in (model["vocab"] | names).items() if i is not None}
    definition["model"] = {**model, "vocab": vocab, "ignore_merges": True}
    assert without_tiktoken(definition, tmp_path)


def test_a_control_token_that_merges_would_end_in_stays_out_of_texts(tmp_path):
    definition = gpt2()
    vocab = definition["model"]["vocab"]
    last = next(name for name, i in vocab.items() if i == 599)
    definition["added_tokens"].insert(0, added(599, last))
    ours = build_tokenizer(str(write_folder(tmp_path, definition, "<|endoftext|>")))
    text = token_of(last).decode()
    assert 599 in their_ids(theirs(tmp_path), text)
    assert 599 not in ours.encode(text) and ours.decode(ours.encode(text)) == text
    assert isinstance(ours, JsonTokenizer)


def test_merges_as_pairs_and_as_texts_are_the_same(tmp_path):
    definition = gpt2()
    merges = definition["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    found = []
    for name, form in (("a", pairs), ("b", [" ".join(pair) for pair in pairs])):
        definition["model"]["merges"] = form
        found.append(build_tokenizer(str(write_folder(tmp_path / name, definition,
                                                      "<|endoftext|>"))))
    assert found[0].fingerprint == found[1].fingerprint


def published_gpt2(folder: Path) -> Path:
    """vocab.json and merges.txt as OpenAI published them, from the ranks."""
    if not (SHARED / "gpt2.tiktoken").is_file():
        pytest.skip("GPT-2's published ranks are not here")
    ranks = read_ranks(SHARED / "gpt2.tiktoken")
    vocab = {name_of(token): i for token, i in ranks.items()} | {"<|endoftext|>": 50256}
    write(folder, "vocab.json", vocab)
    merges = [f"{name_of(a)} {name_of(b)}\n" for a, b in merges_of(ranks)]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(merges), encoding="utf-8")
    return folder


def test_gpt2_from_its_two_files_is_gpt2_from_its_ranks(tmp_path):
    ours = build_tokenizer(str(published_gpt2(tmp_path)))
    assert ours.fingerprint == build_tokenizer(str(SHARED / "gpt2.tiktoken")).fingerprint
    write(tmp_path, "config.json", {"model_type": "gpt2"})
    other = theirs(tmp_path)
    assert all(ours.encode(text) == their_ids(other, text) for text in AWKWARD)


def test_tokens_that_the_settings_add_to_two_files_keep_their_ids(tmp_path):
    more = {"601": {"content": "<|pad|>", "special": True}, "602": {"content": "<x>"}}
    ours = build_tokenizer(str(two_files(tmp_path, added_tokens_decoder=more)))
    assert ours.specials == {"<|endoftext|>": 600, "<|pad|>": 601}
    other = theirs(tmp_path)
    for text in ("a<x>b", "<|pad|>", "<|endoftext|>"):
        assert ours.encode(text) == their_ids(other, text)
    assert ours.encode("<x>") == [602]


def test_two_files_may_ask_for_a_space_before_a_text(tmp_path):
    ours, other = build_tokenizer(str(two_files(tmp_path, add_prefix_space=True))), theirs(tmp_path)
    assert ours.prefixes_space
    assert [ours.encode(text) for text in AWKWARD] == [their_ids(other, t) for t in AWKWARD]


def test_a_tokenizer_json_can_be_named_itself(tmp_path):
    write_folder(tmp_path, llama3(), "<|end_of_text|>")
    ours = build_tokenizer(str(tmp_path / "tokenizer.json"))
    assert ours.spec == str(tmp_path / "tokenizer.json")
    assert ours.fingerprint == build_tokenizer(str(tmp_path)).fingerprint


BEGIN, END, TURN = 600, 601, 602  # Llama 3's control tokens in its small likeness


@pytest.mark.parametrize(("settings", "generation", "config", "stops"), [
    ({"eos_token": "<|end_of_text|>"}, {}, {}, (END,)),
    ({"eos_token": {"content": "<|eot_id|>"}}, {"eos_token_id": END}, {}, (TURN, END)),
    ({}, {"eos_token_id": [END, TURN, END, TURN]}, {"eos_token_id": 1}, (END, TURN)),
    ({}, {}, {"eos_token_id": TURN}, (TURN,)),
    ({}, {"eos_token_id": None}, {"eos_token_id": [TURN, END]}, (TURN,))])
def test_where_the_end_of_text_and_the_stops_come_from(settings, generation, config, stops,
                                                       tmp_path):
    write_folder(tmp_path, llama3(), None, **settings)
    write(tmp_path, "generation_config.json", generation)
    write(tmp_path, "config.json", config)
    ours = build_tokenizer(str(tmp_path))
    assert (ours.end_of_text, ours.stop_tokens) == (stops[0], stops)


@pytest.mark.parametrize("settings", [
    {}, {"add_bos_token": True}, {"add_bos_token": False}, {"bos_token": None}])
@pytest.mark.parametrize("make", [llama3, qwen, gpt2])
def test_begin_of_text_is_what_transformers_puts_before_a_text(make, settings, tmp_path):
    names = [token["content"] for token in make()["added_tokens"]]
    settings = {"bos_token": names[0]} | settings
    write_folder(tmp_path, make(), names[1 % len(names)], **settings)
    ours, other = build_tokenizer(str(tmp_path)), theirs(tmp_path)
    assert ours.encode_prompt("a b") == other.encode("a b")
    assert ours.encode("a b") == their_ids(other, "a b")


@pytest.mark.parametrize("settings", [
    {}, {"add_bos_token": True}, {"add_bos_token": True, "bos_token": "a"},
    {"bos_token": "a"}])
def test_for_two_files_the_settings_say_whether_a_token_goes_first(settings, tmp_path):
    ours, other = build_tokenizer(str(two_files(tmp_path, **settings))), theirs(tmp_path)
    assert ours.encode_prompt("a b") == other.encode("a b")


def test_a_first_token_that_the_tokenizer_lacks_is_refused(tmp_path):
    two_files(tmp_path, add_bos_token=True, bos_token="<s>")
    with pytest.raises(UserError, match="its bos_token '<s>' is no token of its tokenizer"):
        build_tokenizer(str(tmp_path))


def test_only_what_stands_before_a_text_is_its_beginning(tmp_path):
    definition = llama3()
    processor = template("<|begin_of_text|>", BEGIN)
    end = {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}
    processor["single"].append(end)
    processor["special_tokens"]["<|end_of_text|>"] = {
        "id": "<|end_of_text|>", "ids": [END], "tokens": ["<|end_of_text|>"]}
    write_folder(tmp_path, {**definition, "post_processor": processor}, "<|end_of_text|>")
    assert theirs(tmp_path).encode("") == [BEGIN, END]
    assert build_tokenizer(str(tmp_path)).encode_prompt("") == [BEGIN]


def test_an_empty_prompt_is_begin_of_text_or_else_end_of_text(tmp_path):
    ours = build_tokenizer(str(write_folder(tmp_path / "a", llama3(), "<|end_of_text|>")))
    assert (ours.begin_of_text, ours.encode_prompt("")) == (BEGIN, [BEGIN])
    other = build_tokenizer(str(write_folder(tmp_path / "b", gpt2(), "<|endoftext|>")))
    assert (other.begin_of_text, other.encode_prompt(b"")) == (None, [600])
    assert other.encode_prompt(b"a") == other.encode("a")


def test_tokens_that_the_settings_name_are_control_tokens(tmp_path):
    """As transformers has it, though tokenizer.json does not say so."""
    definition = gpt2()
    definition["added_tokens"] = []
    definition["model"]["vocab"] |= {"<pad>": 601, "<turn>": 602}
    write_folder(tmp_path, definition, "<|endoftext|>", pad_token="<pad>",
                 unk_token="!", additional_special_tokens=["<none>", "<turn>"])
    ours = build_tokenizer(str(tmp_path))
    assert ours.specials == {"<|endoftext|>": 600, "<pad>": 601, "<turn>": 602}
    assert isinstance(ours, RankTokenizer)  # though `!` is named, it is text
    other = theirs(tmp_path)
    for text in ("!<pad>", "a<turn>"):
        assert ours.encode(text) == their_ids(other, text)
        assert ours.decode(ours.encode(text)) == text


def test_a_token_that_is_text_by_the_definition_stays_text_unless_it_ends_texts(tmp_path):
    settings = {"additional_special_tokens": ["<think>"]}
    ours = build_tokenizer(str(write_folder(tmp_path, qwen(), "</think>", **settings)))
    assert ours.end_of_text == ours.specials["</think>"] == 603
    assert "<think>" not in ours.specials
    text = "<think>a</think>"
    assert ours.encode(text)[:2] == their_ids(theirs(tmp_path), text)[:2]
    assert 603 not in ours.encode(text) and ours.decode(ours.encode(text)) == text


def test_an_end_of_text_that_is_text_stays_text(tmp_path):
    ours = build_tokenizer(str(write_folder(tmp_path, gpt2(), "!")))
    assert ours.encode("a!") == [*ours.encode("a"), ours.end_of_text]
    assert ours.end_of_text in ours.text_ids and ours.decode([ours.end_of_text]) == "!"


def test_the_end_of_text_may_stand_in_the_map_of_special_tokens(tmp_path):
    write_folder(tmp_path, llama3(), None)
    write(tmp_path, "special_tokens_map.json", {"eos_token": {"content": "<|eot_id|>"}})
    assert build_tokenizer(str(tmp_path)).end_of_text == TURN


def test_a_chat_template_travels_along_and_changes_no_fingerprint(tmp_path):
    write_folder(tmp_path / "a", gpt2(), "<|endoftext|>")
    write_folder(tmp_path / "b", gpt2(), "<|endoftext|>", chat_template="{{ messages }}\r\n")
    plain, chatty = (build_tokenizer(str(tmp_path / name)) for name in "ab")
    assert (plain.chat_template, chatty.chat_template) == (None, "{{ messages }}\r\n")
    assert plain.fingerprint == chatty.fingerprint
    (tmp_path / "b/chat_template.jinja").write_text("é")
    chatty = build_tokenizer(str(tmp_path / "b"))
    for tokenizer in (plain, chatty):
        tokenizer.save(tmp_path / "saved")
        for again in (Tokenizer.load(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
            assert again.chat_template == tokenizer.chat_template
    assert chatty.chat_template == "é"


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_at_once_have_the_ids_of_each_alone(kind, tmp_path):
    definition, end = KINDS[kind]
    tokenizer = build_tokenizer(str(write_folder(tmp_path, definition(), end)))
    texts = [text for text in AWKWARD if tokenizer.unwritable_in(text) is None]
    assert len(texts) > 10
    for at_once, alone in ((tokenizer.encode_arrays, tokenizer.encode),
                           (tokenizer.encode_behind_arrays, tokenizer.encode_behind)):
        found = at_once(texts)
        assert [ids.tolist() for ids in found] == [alone(text) for text in texts]
        assert {ids.dtype.name for ids in found} == {"uint32"}
        assert at_once([]) == []


def test_of_many_texts_the_one_that_cannot_be_written_is_told(tmp_path):
    definition, end = KINDS["smollm"]
    tokenizer = build_tokenizer(str(write_folder(tmp_path, definition(), end)))
    with pytest.raises(UserError, match="no token for the character U\\+0004, at place 1"):
        tokenizer.encode_arrays(["fine", "x\x04", "fine"])
