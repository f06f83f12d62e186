"""Tokenizers in files: published rank files, one's own, and those that a dataset carries."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import tiktoken_ext.openai_public

from gpt.errors import UserError
from gpt.tokenizer import (
    END_OF_TEXT,
    KNOWN_FILES,
    NAMED,
    RankTokenizer,
    Tokenizer,
    build_tokenizer,
    read_ranks,
)

SINGLE_BYTES = {bytes([b]): b for b in range(256)}


def rank_file(folder: Path, ranks: dict[bytes, int], name: str = "own.tiktoken") -> str:
    lines = [base64.b64encode(token).decode() + f" {rank}\n" for token, rank in ranks.items()]
    (folder / name).write_text("".join(lines))
    return str(folder / name)


def test_a_named_encoding_without_a_network_says_where_its_ranks_belong(monkeypatch):
    url = "https://example.org/cl100k_base.tiktoken"

    def fail(name: str) -> None:
        error = ConnectionError("no route\nto host")
        error.request = SimpleNamespace(url=url)
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError) as caught:
        build_tokenizer("cl100k_base")
    assert str(caught.value) == (
        "tokenizer cl100k_base: its ranks are not on this machine and could not be fetched "
        f"(ConnectionError); put them as {hashlib.sha1(url.encode()).hexdigest()} into the folder "
        "named by TIKTOKEN_CACHE_DIR, or use one that needs no network: tokenizer=bpe:8192, or "
        "tokenizer=PATH.tiktoken")


def test_ranks_that_were_put_there_need_no_network(monkeypatch, tmp_path):
    """The file name in that message is the one that tiktoken looks for."""
    url = "https://example.org/ranks.tiktoken"
    named = tmp_path / hashlib.sha1(url.encode()).hexdigest()
    rank_file(tmp_path, SINGLE_BYTES, named.name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert tiktoken.load.load_tiktoken_bpe(url) == SINGLE_BYTES


@pytest.mark.parametrize("name", NAMED)
def test_a_named_encoding_that_is_there_is_used(name, monkeypatch):
    encoding = tiktoken.Encoding(name, pat_str=r"\w+|\W", mergeable_ranks=SINGLE_BYTES,
                                 special_tokens={END_OF_TEXT: 300})
    monkeypatch.setattr(tiktoken, "get_encoding", {name: encoding}.__getitem__)
    tokenizer = build_tokenizer(name)
    assert (tokenizer.spec, tokenizer.pattern, tokenizer.end_of_text) == (name, r"\w+|\W", 300)


@pytest.mark.parametrize(("name", "ranks"), [
    ("gpt2", 50_256), ("p50k_base", 50_280), ("cl100k_base", 100_256), ("o200k_base", 199_998)])
def test_a_published_rank_file_gets_the_pattern_and_control_token_of_its_encoding(
        name, ranks, monkeypatch):
    for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(tiktoken_ext.openai_public, loader, lambda *args, **kwargs: {})
    published = getattr(tiktoken_ext.openai_public, name)()
    pattern, end_of_text = KNOWN_FILES[ranks]
    assert pattern == published["pat_str"]
    assert end_of_text == published["special_tokens"][END_OF_TEXT]


def test_ones_own_rank_file_ends_with_the_control_token(tmp_path):
    own = build_tokenizer(rank_file(tmp_path, SINGLE_BYTES | {b"ab": 256, b"abc": 257}))
    assert (own.spec, own.end_of_text, own.vocab_size) == ("own.tiktoken", 258, 259)
    assert own.encode("abcab") == [257, 256]


def test_a_rank_file_with_a_gap_does_not_share_the_control_tokens_id(tmp_path):
    own = build_tokenizer(rank_file(tmp_path, SINGLE_BYTES | {b"ab": 257}))
    assert own.end_of_text not in own.encode("ab")


def test_ones_own_rank_file_of_a_published_size_does_not_share_the_control_tokens_id(tmp_path):
    filler = {b"\xff" + i.to_bytes(4, "big"): i for i in range(256, 50_280)}
    own = build_tokenizer(rank_file(tmp_path, SINGLE_BYTES | filler))
    assert own.end_of_text not in own.ranks.values()


@pytest.mark.parametrize(("text", "message"), [
    ("YQ== 0\nYg==\n", "line 2: expected base64 and a rank, as in tiktoken's files"),
    ("YQ== 0\nYg== b\n", "line 2: expected base64 and a rank"),
    ("?? 0\n", "line 1: expected base64 and a rank"),
    (" 0\n 1\n", "line 1: expected base64 and a rank"),
    ("YQ== 0 0\n", "line 1: expected base64 and a rank"),
    ("YQ== 1\n", ": ranks must start at 0 and stand once each"),
    ("YQ== 0\nYg== 0\n", ": ranks must start at 0 and stand once each"),
    ("YQ== -1\nYg== 0\n", ": ranks must start at 0 and stand once each"),
    ("", ": ranks must start at 0 and stand once each"),
    ("YQ== 0\n", "255 of the 256 single bytes have no token, so not every text could be encoded; "
                 "use another rank file")])
def test_a_rank_file_that_is_none_is_refused(text, message, tmp_path):
    path = tmp_path / "bad.tiktoken"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        build_tokenizer(str(path))
    assert "bad.tiktoken" in str(caught.value) and message in str(caught.value)


def test_a_token_that_stands_twice_in_a_rank_file_is_refused(tmp_path):
    path = Path(rank_file(tmp_path, SINGLE_BYTES))
    path.write_text(path.read_text() + "YQ== 256\n")
    with pytest.raises(UserError):
        read_ranks(path)


def test_a_rank_beyond_all_vocabularies_is_refused(tmp_path):
    with pytest.raises(UserError):
        build_tokenizer(rank_file(tmp_path, SINGLE_BYTES | {b"ab": 2**40}))


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:262"])
def test_a_saved_tokenizer_gives_the_same_ids_without_a_network(spec, tmp_path, monkeypatch):
    tokenizer = build_tokenizer(spec, ["def main():\n    return 'été'\n" * 9])
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail("asked the network"))
    tokenizer.save(tmp_path / "new" / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "new" / "tokenizer")
    text = f"def main():\n\treturn 'é' * 1234  # {END_OF_TEXT}"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.spec, loaded.specials, loaded.vocab_size, loaded.fingerprint) == (
        tokenizer.spec, tokenizer.specials, tokenizer.vocab_size, tokenizer.fingerprint)


def test_the_fingerprint_tells_ranks_patterns_and_control_tokens_apart():
    specials = {END_OF_TEXT: 256}
    swapped = SINGLE_BYTES | {b"a": SINGLE_BYTES[b"b"], b"b": SINGLE_BYTES[b"a"]}
    different = [RankTokenizer("t", SINGLE_BYTES, ".", specials),
                 RankTokenizer("t", swapped, ".", specials),
                 RankTokenizer("t", SINGLE_BYTES, r"\w", specials),
                 RankTokenizer("t", SINGLE_BYTES, ".", {END_OF_TEXT: 257})]
    assert len({tokenizer.fingerprint for tokenizer in different}) == 4
    assert different[0].fingerprint == RankTokenizer("u", SINGLE_BYTES, ".", specials).fingerprint


def test_datasets_that_were_prepared_long_ago_know_their_tokenizer(tmp_path):
    """Fingerprints and files are what they were when the first datasets were written."""
    assert build_tokenizer("byte").fingerprint == (
        "4974ad49daaf33b786d7d146b2c54c9f2d6ff619ac07ada41997c250b5198602")
    bpe = build_tokenizer("bpe:270", ["aaab aab"] * 9)
    assert bpe.fingerprint == "a5607cbefdb7f2d8f4b0312dad60e53fff26d463edc2c66971a632e85ac380fe"
    bpe.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoding.json", "ranks.tiktoken"]
    assert list(json.loads((tmp_path / "encoding.json").read_text())) == [
        "format_version", "spec", "pattern", "specials", "sha256"]


@pytest.mark.parametrize(("file", "step"), [("encoding.json", 1), ("ranks.tiktoken", 11)])
def test_a_flipped_bit_in_a_saved_tokenizer_is_found_or_changes_no_id(file, step, tmp_path):
    byte = build_tokenizer("byte")
    byte.save(tmp_path)
    intact = (tmp_path / file).read_bytes()
    found = 0
    for at in range(0, len(intact), step):
        damaged = bytearray(intact)
        damaged[at] ^= 1 << at % 8
        (tmp_path / file).write_bytes(damaged)
        try:
            assert Tokenizer.load(tmp_path).fingerprint == byte.fingerprint
        except UserError as error:
            assert str(tmp_path) in str(error)
            found += 1
    assert found > len(intact) / step / 2


@pytest.mark.parametrize("file", ["encoding.json", "ranks.tiktoken"])
def test_a_saved_tokenizer_that_is_cut_short_or_missing_is_found(file, tmp_path):
    build_tokenizer("byte").save(tmp_path)
    intact = (tmp_path / file).read_bytes()
    for length in (0, 1, len(intact) // 2, len(intact) - 3):
        (tmp_path / file).write_bytes(intact[:length])
        with pytest.raises(UserError, match=r"cannot read the tokenizer in|is damaged"):
            Tokenizer.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="cannot read the tokenizer in"):
        Tokenizer.load(tmp_path)


def test_another_saved_hash_is_refused_with_what_to_do(tmp_path):
    build_tokenizer("byte").save(tmp_path)
    saved = json.loads((tmp_path / "encoding.json").read_text())
    (tmp_path / "encoding.json").write_text(json.dumps(saved | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="is damaged: its hash is not the one it was saved with; "
                                        "prepare the dataset again or use another checkpoint"):
        Tokenizer.load(tmp_path)


def load_with(folder: Path, **changes) -> Tokenizer:
    build_tokenizer("byte").save(folder)
    saved = json.loads((folder / "encoding.json").read_text())
    (folder / "encoding.json").write_text(json.dumps(saved | changes))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("changes", [
    {"pattern": "("}, {"pattern": 5}, {"pattern": None}, {"specials": {END_OF_TEXT: "a"}},
    {"specials": {}}, {"sha256": None}])
def test_hostile_contents_of_a_saved_tokenizer_are_one_error(changes, tmp_path):
    with pytest.raises(UserError):
        load_with(tmp_path, **changes)


def test_a_control_token_beyond_all_vocabularies_is_refused():
    ranks = {bytes([b]): b for b in range(256)}
    assert RankTokenizer("x", ranks, ".", {END_OF_TEXT: 9_999_999}).vocab_size == 10_000_000
    with pytest.raises(UserError, match="tokenizer x: id 10000000 is beyond all vocabularies"):
        RankTokenizer("x", ranks, ".", {END_OF_TEXT: 10_000_000})


@pytest.mark.parametrize("pattern", ["", "x*", "(?=a)"])
def test_a_pattern_that_cuts_nothing_out_of_a_text_is_one_error_when_it_is_used(pattern):
    ranks = {bytes([b]): b for b in range(256)}
    with pytest.raises(UserError, match="tokenizer x cannot encode this text"):
        RankTokenizer("x", ranks, pattern, {END_OF_TEXT: 256}).encode("bab")
    assert RankTokenizer("x", ranks, ".", {END_OF_TEXT: 256}).encode("b") == [98]


@pytest.mark.parametrize("changes", [
    {"specials": []}, {"specials": None}, {"specials": {END_OF_TEXT: -1}},
    {"specials": {END_OF_TEXT: 2**40}}])
def test_hostile_control_tokens_of_a_saved_tokenizer_are_one_error(changes, tmp_path):
    with pytest.raises(UserError):
        load_with(tmp_path, **changes)


def test_deep_json_in_a_saved_tokenizer_is_one_error(tmp_path):
    build_tokenizer("byte").save(tmp_path)
    (tmp_path / "encoding.json").write_text("[" * 100_000)
    with pytest.raises(UserError):
        Tokenizer.load(tmp_path)
