"""Tokenizers that `tokenizers` runs: bytes, dummy prefixes, streaming, files of their own."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from gpt.errors import UserError
from gpt.tokenizer import Boundaries, JsonTokenizer, Tokenizer, build_tokenizer
from gpt.tokenizer.alphabet import name_of
from tests.tiny import ROOT
from tests.tokenizer.hub_tokenizers import (
    AWKWARD,
    KINDS,
    LACKING,
    STRIPPED,
    added,
    corpus,
    deepseek,
    gemma,
    gpt2,
    llama2,
    llama3,
    qwen,
    smollm,
    unigram,
    write_folder,
)

SEEDED = settings(max_examples=40, derandomize=True, database=None, deadline=None)
SAFE_CUT = r"(?<=[^\W_])(?=\s)|(?<=\S\n)(?=[^\W_])"  # as data.sources.text has it
WITH_BYTES = ["gpt2", "llama3", "starcoder", "llama2", "gemma"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One of each kind."""
    folder = tmp_path_factory.mktemp("hub")
    return {kind: build_tokenizer(str(write_folder(folder / kind, make(), eos)))
            for kind, (make, eos) in KINDS.items()}


@pytest.fixture(params=WITH_BYTES)
def with_bytes(request, tokenizers):
    """Those that keep any bytes, apart from a dummy prefix and a normaliser."""
    return tokenizers[request.param]


@SEEDED
@given(text=st.text())
def test_any_text_survives_a_round_trip(tokenizers, text):
    for kind in WITH_BYTES:
        if "▁" not in text or kind not in ("llama2", "gemma"):  # which is their space
            assert tokenizers[kind].decode(tokenizers[kind].encode(text)) == text


@SEEDED
@given(data=st.binary() | st.text(alphabet="aé▁ \n").map(lambda text: text.encode() + b"\xc3"))
def test_any_bytes_survive_a_round_trip_but_for_the_prefix(tokenizers, data):
    for kind in WITH_BYTES:
        ours = tokenizers[kind]
        found = ours.decode_bytes(ours.encode_bytes(data))
        if kind in ("llama2", "gemma"):
            data = data.replace("▁".encode(), b" ")
        starts_with_text = data[:1] and not data.decode("utf-8", "replace").startswith("\ufffd")
        prefix = b" " if ours.prefixes_space and starts_with_text else b""
        assert found == prefix + data or "\ufffd".encode() in data


def test_bytes_that_are_not_utf8_are_single_byte_tokens_and_bring_no_space(tokenizers):
    llama = tokenizers["llama2"]
    ids = llama.encode_bytes(b"def\xff\xfe return")
    assert llama.decode_bytes(ids) == b" def\xff\xfe return"
    vocab = json.loads(llama.definition)["model"]["vocab"]
    assert [vocab["<0xFF>"], vocab["<0xFE>"]] == [i for i in ids if 3 <= i < 259]
    assert llama.decode_bytes(llama.encode_bytes(b"\xffdef")) == b"\xffdef"


def test_lone_surrogates_are_the_bytes_that_they_stand_for(with_bytes):
    text = b"a\xff\xc3 b".decode("utf-8", "surrogateescape")
    assert with_bytes.encode(text) == with_bytes.encode_bytes(b"a\xff\xc3 b")
    assert "\ufffd" in with_bytes.decode(with_bytes.encode("a\ud800b"))


def test_without_single_bytes_they_become_replacement_characters(tokenizers):
    without = tokenizers["unigram"]
    ids = without.encode_bytes(b"a\xff")
    assert ids == [*without.encode("a"), without.specials["<unk>"]]


@pytest.mark.parametrize("kind", ["llama2", "mistral"])
@pytest.mark.parametrize("text", [text for text in AWKWARD if "▁" not in text])
def test_the_space_that_is_put_before_a_text_is_dropped_again(kind, text, tokenizers):
    ours = tokenizers[kind]
    ids = ours.encode(text)
    prefix = " " if text else ""
    if kind == "mistral" and text.startswith(" "):  # its pre-tokenizer takes that for the prefix
        text = text[1:]
    assert ours.decode(ids) == text
    assert ours.decode([ours.begin_of_text, *ids]) == "<s>" + text
    assert ours.decode_bytes(ids) == (prefix + text).encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_tokens_one_by_one_make_the_same_bytes(kind, text, tokenizers):
    ours = tokenizers[kind]
    ids = ours.encode(text)
    pieces = [ours.decode_bytes([i]) for i in ids]
    assert b"".join(pieces) == ours.decode_bytes(ids)
    others = [i for i in ids if i not in ours.text_ids]  # <unk>, which is no text
    assert (ours.byte_lengths()[ids].sum() + sum(len(ours.decode_bytes([i])) for i in others)
            == len(b"".join(pieces)))


def test_a_continuation_keeps_its_space(tokenizers):
    ours = tokenizers["llama2"]
    first, second = ours.encode("return"), ours.encode("None")
    assert b"".join(ours.decode_bytes([i]) for i in [*first, *second]) == b" return None"


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_kinds_of_ids(kind, tokenizers):
    ours = tokenizers[kind]
    control = set(ours.specials.values())
    assert ours.text_ids.isdisjoint(control) and ours.end_of_text in control
    assert ours.vocab_size == max(ours.text_ids | control) + 1
    lengths = ours.byte_lengths()
    assert lengths.shape == (ours.vocab_size,) and lengths.dtype == np.int64
    assert lengths[list(control)].sum() == 0
    assert ours.encode_array("a b").dtype == np.uint32
    assert [ids.tolist() for ids in ours.encode_arrays(["a b", ""])] == [ours.encode("a b"), []]


def test_added_tokens_that_are_text_count_their_bytes(tokenizers):
    qwen = tokenizers["qwen"]
    (think,) = qwen.encode("<think>")
    assert qwen.byte_lengths()[think] == 7 and think in qwen.text_ids


def test_an_added_token_stands_for_its_name_not_for_the_bytes_that_its_letters_stand_for():
    definition = qwen()
    definition["added_tokens"].append(added(604, "<é>", special=False))
    ours = JsonTokenizer("x", json.dumps(definition), Boundaries(600))
    assert ours.encode("<é>") == [604] and ours.decode([604]) == "<é>"


@pytest.mark.parametrize("boundaries", [Boundaries(9999), Boundaries(600, 9999),
                                        Boundaries(600, None, (9999,))])
def test_boundaries_that_are_no_tokens_are_refused(boundaries):
    with pytest.raises(UserError, match="texts begin or end at id 9999, which is no token of it"):
        JsonTokenizer("x", json.dumps(qwen()), boundaries)


def test_a_text_that_spells_a_control_token_is_spelled_in_letters(tokenizers):
    """A Unigram model has it among its pieces; transformers would make the control token of it."""
    ours = tokenizers["unigram"]
    assert ours.end_of_text in ours._library.encode("a</s>b", add_special_tokens=False).ids
    ids = ours.encode("a</s>b")
    assert ours.end_of_text not in ids
    assert len(ids) > 4 and ours.decode(ids).startswith("a")


@pytest.mark.parametrize("wrong", [10_000, -1, 2**70])
@pytest.mark.parametrize("kind", ["qwen", "llama2"])
def test_an_id_that_is_no_token_is_refused(kind, wrong, tokenizers):
    with pytest.raises(UserError, match=f"^token id {wrong} is not in tokenizer .*ids lie in 0 to"):
        tokenizers[kind].decode([5, wrong])
    with pytest.raises(UserError, match=f"^token id {wrong} "):
        tokenizers[kind].decode_bytes([wrong])


def test_ids_may_be_numpy_integers(tokenizers):
    ours = tokenizers["llama2"]
    assert ours.decode(np.array(ours.encode("def main"))) == "def main"


def test_who_puts_a_space_before_a_text_and_who_can_encode_it_in_pieces(tokenizers):
    prefixed = {kind for kind, ours in tokenizers.items() if ours.prefixes_space}
    in_pieces = {kind for kind, ours in tokenizers.items() if ours.encodes_in_pieces}
    assert prefixed == {"llama2", "mistral", "unigram"}
    assert in_pieces == KINDS.keys() - {"unigram"}
    byte_level = gpt2()
    byte_level["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True,
                                   "trim_offsets": True, "use_regex": True}
    ours = JsonTokenizer("x", json.dumps(byte_level), Boundaries(600))
    assert ours.prefixes_space and ours.decode(ours.encode("a")) == "a"


@pytest.mark.parametrize("kind", ["NFKC", "Lowercase"])
def test_another_normaliser_than_nfc_forbids_pieces(kind):
    definition = {**qwen(), "normalizer": {"type": kind}}
    assert not JsonTokenizer("x", json.dumps(definition), Boundaries(600)).encodes_in_pieces


def test_an_added_token_that_goes_across_a_blank_forbids_pieces():
    definition = qwen()
    definition["added_tokens"].append(added(604, "a b", special=False))
    assert not JsonTokenizer("x", json.dumps(definition), Boundaries(600)).encodes_in_pieces


def test_no_pieces_where_a_token_goes_across_a_blank_or_what_is_unknown_may():
    for name in ("a▁b", "x\n", "\ny"):
        definition = gemma()
        definition["model"]["vocab"][name] = 950
        assert not JsonTokenizer("x", json.dumps(definition), Boundaries(1)).encodes_in_pieces
    definition = gemma()
    del definition["model"]["vocab"]["<0x0B>"]
    assert not JsonTokenizer("x", json.dumps(definition), Boundaries(1)).encodes_in_pieces
    definition = gemma() | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "b+ c"},
                                              "behavior": "Isolated", "invert": False}}
    assert not JsonTokenizer("x", json.dumps(definition), Boundaries(1)).encodes_in_pieces


def test_no_pieces_where_all_that_cuts_looks_at_single_characters():
    definition = deepseek()
    del definition["pre_tokenizer"]["pretokenizers"][2]
    assert not JsonTokenizer("x", json.dumps(definition), Boundaries(600)).encodes_in_pieces


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_cut_where_preparation_cuts_have_the_ids_of_the_whole(kind, tokenizers):
    """The reason for each that is said to encode in pieces: data.sources.text cuts here."""
    ours = tokenizers[kind]
    same = []
    for text in (*corpus(), *map(ours.writable, AWKWARD)):
        cuts = [match.end() for match in re.finditer(SAFE_CUT, text)]
        for places in (cuts, cuts[::7], cuts[3::97]):
            first, *more = [text[a:b] for a, b in zip([0, *places], [*places, len(text)],
                                                      strict=True)]
            ids = [*ours.encode(first), *(i for one in more for i in ours.encode_behind(one))]
            same.append(ids == ours.encode(text))
    assert all(same) == ours.encodes_in_pieces


def test_characters_that_no_token_stands_for_are_named_and_replaced_never_a_control_token(
        tokenizers):
    ours = tokenizers["smollm"]
    held = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000
            and set(LACKING) & set(chr(c).encode())]
    assert [c for c in range(0x110000) if ours.unwritable.match(chr(c))] == held
    with pytest.raises(UserError, match=r"has no token for the character U\+0004, at place 3 of "
                                        "this text; take it out$"):
        ours.encode("a b\x04c")
    assert ours.writable("a\x04\U00040000b") == "a\ufffd\ufffdb"
    assert ours.decode(ours.encode(ours.writable("a\x04b"))) == "a\ufffdb"
    assert ours.end_of_text not in ours.encode_bytes(b"a\xff\x03")
    assert {kind for kind, one in tokenizers.items() if one.unwritable} == {"smollm"}


def test_the_replacement_is_a_question_mark_where_even_that_has_no_token():
    definition = smollm()
    del definition["model"]["vocab"][name_of(b"\xef")]
    ours = JsonTokenizer("x", json.dumps(definition), Boundaries(600))
    assert ours.writable("a\x04\ufffd") == "a??" and ours.encode_bytes(b"\xff") == ours.encode("?")


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_alone_and_in_pairs_is_the_text_that_tokenizers_decodes(kind, tokenizers):
    """But for bytes that are no text yet: `tokenizers` has a replacement for each of them."""
    ours, library = tokenizers[kind], Library.from_str(json.dumps(KINDS[kind][0]()))
    def decode(*ids):
        return library.decode(ids, skip_special_tokens=False)
    for i in ours.text_ids:
        assert ours.decode([i]) == decode(i), i
    chosen = random.Random(0).choices(sorted(ours.text_ids), k=4000)
    for both in zip(chosen[::2], chosen[1::2], strict=True):
        if "\ufffd" not in (text := ours.decode(both)):
            assert text == decode(*both), both


def test_truncation_and_dropout_in_the_file_change_nothing():
    definition = qwen()
    definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
                                "stride": 0}
    plain = JsonTokenizer("x", json.dumps(qwen()), Boundaries(600))
    definition["model"]["dropout"] = 0.9
    ours = JsonTokenizer("x", json.dumps(definition), Boundaries(600))
    assert ours.encode(corpus()[1]) == plain.encode(corpus()[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_and_so_is_one_sent_to_a_process(kind, tokenizers, tmp_path):
    ours = tokenizers[kind]
    ours.save(tmp_path / "new/tokenizer")
    for again in (Tokenizer.load(tmp_path / "new/tokenizer"),
                  build_tokenizer(str(tmp_path / "new/tokenizer")),
                  pickle.loads(pickle.dumps(ours))):
        assert type(again) is type(ours)
        assert [again.encode(text) for text in AWKWARD] == [ours.encode(text) for text in AWKWARD]
        assert (again.spec, again.boundaries, again.specials, again.fingerprint) == (
            ours.spec, ours.boundaries, ours.specials, ours.fingerprint)


def test_the_fingerprint_tells_files_and_boundaries_apart(tmp_path):
    text = json.dumps(llama2())
    different = [JsonTokenizer("x", text, Boundaries(2)),
                 JsonTokenizer("x", text, Boundaries(2, 1)),
                 JsonTokenizer("x", text, Boundaries(2, None, (1,))),
                 JsonTokenizer("x", json.dumps({**llama2(), "decoder": STRIPPED | {
                     "type": "Metaspace", "replacement": "▁"}}), Boundaries(2))]
    assert len({tokenizer.fingerprint for tokenizer in different}) == 4
    assert different[0].fingerprint == JsonTokenizer("y", text, Boundaries(2), "hi").fingerprint


def test_boundaries_of_their_own_are_part_of_a_rank_tokenizers_fingerprint(tmp_path):
    found = {}
    for eos in ("<|end_of_text|>", "<|eot_id|>"):
        ours = build_tokenizer(str(write_folder(tmp_path / eos, llama3(), eos)))
        found[eos] = ours.fingerprint
        ours.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/encoding.json").read_text())
    assert len(set(found.values())) == 2
    saved["boundaries"]["end_of_text"] -= 1
    (tmp_path / "saved/encoding.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(tmp_path / "saved")


@pytest.mark.parametrize(("file", "step"), [("encoding.json", 3), ("tokenizer.json", 1501)])
def test_a_flipped_bit_in_a_saved_tokenizer_is_found_or_changes_no_id(file, step, tokenizers,
                                                                      tmp_path):
    ours = tokenizers["qwen"]
    ours.save(tmp_path)
    intact = (tmp_path / file).read_bytes()
    found = 0
    places = range(0, len(intact), step)
    for at in places:
        damaged = bytearray(intact)
        damaged[at] ^= 1 << at % 8
        (tmp_path / file).write_bytes(damaged)
        try:
            assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
        except UserError as error:
            assert str(tmp_path) in str(error)
            found += 1
    assert found > len(places) / 2


@pytest.mark.parametrize("changes", [
    {"kind": "other"}, {"kind": None}, {"boundaries": None}, {"boundaries": {"end_of_text": 0}},
    {"boundaries": {"end_of_text": 9999, "begin_of_text": None, "other_stops": []}},
    {"boundaries": {"end_of_text": [], "begin_of_text": None, "other_stops": []}},
    {"json_sha256": None}, {"sha256": 5}])
def test_hostile_contents_of_a_saved_tokenizer_are_one_error(changes, tokenizers, tmp_path):
    tokenizers["qwen"].save(tmp_path)
    saved = json.loads((tmp_path / "encoding.json").read_text())
    (tmp_path / "encoding.json").write_text(json.dumps(saved | changes))
    with pytest.raises(UserError, match=r"cannot read the tokenizer in|is damaged"):
        Tokenizer.load(tmp_path)


def test_a_text_that_the_library_cannot_encode_is_one_error():
    definition = unigram()
    definition["model"]["unk_id"] = None
    ours = JsonTokenizer("x", json.dumps(definition), Boundaries(1))
    with pytest.raises(UserError, match="tokenizer x cannot encode this text"):
        ours.encode("\U0010ffff")


def test_reading_a_tokenizer_loads_neither_torch_nor_transformers(tmp_path: Path):
    write_folder(tmp_path, qwen(), "<|endoftext|>")
    script = ("import sys; from gpt.tokenizer import build_tokenizer; "
              "assert 'tokenizers' not in sys.modules; "
              f"build_tokenizer({str(tmp_path)!r}); "
              "assert not {'torch', 'transformers'} & sys.modules.keys()")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
