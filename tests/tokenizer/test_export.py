"""Our tokenizers as Hugging Face's files: transformers reads them, to the same ids and texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from gpt.errors import UserError
from gpt.tokenizer import (
    END_OF_TEXT,
    RankTokenizer,
    Tokenizer,
    build_tokenizer,
    merges_of,
    read_ranks,
    tokenizer_config,
    tokenizer_json,
)
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    ONE_CHARACTER,
    QWEN2_PATTERN,
)
from tests.tiny import SHARED
from tests.tokenizer.hub_tokenizers import (
    AWKWARD,
    KINDS,
    corpus,
    llama3,
    mistral,
    qwen,
    their_ids,
    theirs,
    write,
    write_folder,
)

SEEDED = settings(max_examples=30, derandomize=True, database=None, deadline=None)
BYTES = {bytes([b]): b for b in range(256)}
PATTERNS = {"gpt2": GPT2_PATTERN, "cl100k": CL100K_PATTERN, "o200k": O200K_PATTERN,
            "qwen2": QWEN2_PATTERN}
# Ids with gaps; tokens above the tokens that they are merged from; tokens that no merge reaches.
OWN = BYTES | {b"abc": 256, b"ab": 257, b"  ": 258, b"aaaa": 300, b"aa": 301, b"zzz": 302,
               b" the": 303, b"\xe4\xb8": 304, "é".encode(): 305}
NAMES = ["byte", "char", "bpe", "file", "own", *PATTERNS]


def exported(tokenizer: Tokenizer, folder: Path, block_size: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    write(folder, "tokenizer_config.json", tokenizer_config(tokenizer, block_size))
    return folder


@pytest.fixture(scope="module")
def tokenizers():
    """One of each kind of ours."""
    bpe = build_tokenizer("bpe:600", corpus())
    found = {"byte": build_tokenizer("byte"), "char": build_tokenizer("char", corpus()),
             "bpe": bpe, "own": RankTokenizer("own", OWN, BPE_PATTERN, {END_OF_TEXT: 299})}
    ranks = bpe.ranks | {b"\n ": 650, b"  \n": 651}  # so that a cut between them shows
    for name, pattern in PATTERNS.items():
        found[name] = RankTokenizer(name, ranks, pattern, {END_OF_TEXT: 800, "<|x|>": 705})
    if (SHARED / "gpt2.tiktoken").is_file():
        found["file"] = build_tokenizer(str(SHARED / "gpt2.tiktoken"))
    return found


@pytest.fixture(scope="module", params=NAMES)
def both(request, tokenizers, tmp_path_factory):
    """(ours, its folder, what transformers makes of it)."""
    if request.param not in tokenizers:
        pytest.skip("GPT-2's published ranks are not here")
    ours = tokenizers[request.param]
    folder = exported(ours, tmp_path_factory.mktemp(request.param))
    return ours, folder, theirs(folder)


MORE = [" abcabc xabc aaaaaaa aaa zzz zzzz the the 中é", "a\n \n  ", "a  \n "]


@pytest.mark.parametrize("text", [*AWKWARD, *MORE], ids=range(len(AWKWARD) + len(MORE)))
def test_awkward_texts_have_the_same_ids_and_come_back(both, text):
    ours, _, other = both
    assert their_ids(other, text) == ours.encode(text)
    assert other.decode(ours.encode(text)) == text


@SEEDED
@given(text=st.text() | st.text(alphabet="abcz' \n\r\t1é中\u0301!/_S"))
@example(text="'s'S'ſ'LL x\n \n")
def test_any_text_has_the_same_ids_and_comes_back(both, text):
    ours, _, other = both
    assert their_ids(other, text) == ours.encode(text)
    assert other.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", ["file", *PATTERNS, "bpe", "byte"])
def test_characters_of_all_kinds_are_cut_alike(name, tokenizers):
    """White space, letters and digits are the same to both libraries, all over Unicode."""
    if name not in tokenizers:
        pytest.skip("GPT-2's published ranks are not here")
    ours = tokenizers[name]
    library = Library.from_str(tokenizer_json(ours))
    library.encode_special_tokens = True
    everyone = [chr(i) for i in [*range(0x3100), *random.Random(0).sample(
        [*range(0x3100, 0xD800), *range(0xE000, 0x110000)], 4000)]]
    for start in range(0, len(everyone), 400):
        text = "".join(f"{c}  {c}a{c}\n{c} \n {c}'{c}1{c}" for c in everyone[start:start + 400])
        assert library.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_control_tokens_keep_their_ids_and_are_read_as_such_where_one_asks_for_it(both):
    ours, folder, other = both
    library = Library.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for name, i in ours.specials.items():
        assert library.encode(f"a{name}").ids == [*ours.encode("a"), i]
        assert other.convert_tokens_to_ids(name) == i
        assert i not in their_ids(other, name)
    assert other.eos_token_id == ours.end_of_text
    assert other.decode([ours.end_of_text, *ours.encode("a")], skip_special_tokens=True) == "a"


def test_what_was_written_reads_back_as_the_same_tokenizer(both):
    ours, folder, _ = both
    again = build_tokenizer(str(folder))
    assert isinstance(again, RankTokenizer)
    assert again.fingerprint == ours.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_from_a_folder_goes_into_one_again(kind, tmp_path):
    make, eos = KINDS[kind]
    folder = write_folder(tmp_path / "in", make(), eos, chat_template="{{ 1 }}")
    ours = build_tokenizer(str(folder))
    other = theirs(exported(ours, tmp_path / "out"))
    assert [their_ids(other, text) for text in AWKWARD] == [
        their_ids(theirs(folder), text) for text in AWKWARD]
    assert other.encode("a b") == ours.encode_prompt("a b")
    again = build_tokenizer(str(tmp_path / "out"))
    assert (again.fingerprint, again.boundaries, again.chat_template) == (
        ours.fingerprint, ours.boundaries, "{{ 1 }}")


@pytest.mark.parametrize("make", [qwen, mistral])
def test_a_file_of_another_kind_goes_out_as_it_came_in(make, tmp_path):
    folder = write_folder(tmp_path, make(), "</s>" if make is mistral else END_OF_TEXT)
    text = json.dumps(make(), indent=1)
    (folder / "tokenizer.json").write_text(text)
    assert tokenizer_json(build_tokenizer(str(folder))) == text


def test_the_settings_say_all_that_transformers_needs(tmp_path):
    ours = build_tokenizer(str(write_folder(tmp_path, llama3(), "<|eot_id|>")))
    ours.chat_template = "{{ messages }}"
    assert tokenizer_config(ours, 128) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eot_id|>",
        "bos_token": "<|begin_of_text|>", "pad_token": "<|eot_id|>", "model_max_length": 128,
        "clean_up_tokenization_spaces": False, "chat_template": "{{ messages }}"}
    assert tokenizer_config(build_tokenizer("byte"), 8) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT, "model_max_length": 8, "clean_up_tokenization_spaces": False}


def test_a_base_models_own_padding_stays_through_checkpoints_and_exports(tmp_path):
    ours = build_tokenizer(str(write_folder(tmp_path / "hub", llama3(), "<|eot_id|>",
                                            pad_token="<|end_of_text|>")))
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == ours.fingerprint
    for tokenizer in (ours, again, again.stopping_at(601)):
        assert tokenizer.pad_token == 601
        assert tokenizer_config(tokenizer, 8)["pad_token"] == "<|end_of_text|>"
    file = tmp_path / "saved/encoding.json"
    file.write_text(file.read_text().replace('"pad_token": 601', '"pad_token": 9999'))
    with pytest.raises(UserError, match="is damaged: it pads with id 9999, which is no token"):
        Tokenizer.load(tmp_path / "saved")


def test_gpt2s_pattern_is_the_one_that_other_programs_know(tokenizers):
    written = json.loads(tokenizer_json(tokenizers["gpt2"]))
    assert written["pre_tokenizer"] == {"type": "ByteLevel", "add_prefix_space": False,
                                        "trim_offsets": True, "use_regex": True}
    assert written["model"]["ignore_merges"] is False
    assert json.loads(tokenizer_json(tokenizers["char"]))["model"]["ignore_merges"] is True


def test_gpt2s_merges_are_as_many_as_were_published():
    if not (SHARED / "gpt2.tiktoken").is_file():
        pytest.skip("GPT-2's published ranks are not here")
    merges = merges_of(read_ranks(SHARED / "gpt2.tiktoken"))
    assert len(merges) == 50_000
    assert merges[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")]


def test_the_last_pair_of_a_token_is_the_one_that_merging_ends_in():
    ranks = BYTES | {b"ab": 256, b"bc": 257, b"abc": 258, b"xyz": 259}
    assert merges_of(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]
    assert merges_of(ranks | {b"bc": 256, b"ab": 257}) == [
        (b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]
    assert merges_of(BYTES) == []


RANKS = st.lists(st.text(alphabet="abc", min_size=2, max_size=6), unique=True, max_size=25)


@settings(SEEDED, max_examples=60)
@given(tokens=RANKS, texts=st.lists(st.text(alphabet="abc", max_size=30), min_size=5, max_size=5))
def test_any_ranks_at_all_merge_alike(tokens, texts):
    """However they are ordered, whether they can be reached or not."""
    ranks = BYTES | {token.encode(): 256 + i for i, token in enumerate(tokens)}
    ours = RankTokenizer("t", ranks, BPE_PATTERN, {END_OF_TEXT: 999})
    library = Library.from_str(tokenizer_json(ours))
    for text in texts:
        assert library.encode(text).ids == ours.encode(text)


@pytest.mark.parametrize(("ranks", "pattern", "name", "message"), [
    (BYTES | {b"<x>": 256}, BPE_PATTERN, "<x>", "'<x>' is the name of a control token and of one"),
    (BYTES | {"é".encode(): 257, b"\xc3": 256}, r"\w+|\W", "<x>", "its pattern '"),
    (BYTES | {"aé".encode(): 258}, BPE_PATTERN, "a", "'a' is the name of a control token")])
def test_what_a_tokenizer_json_cannot_hold_is_refused(ranks, pattern, name, message):
    ours = RankTokenizer("t", ranks, pattern, {END_OF_TEXT: 999, name: 1000})
    with pytest.raises(UserError) as caught:
        tokenizer_json(ours)
    assert message in str(caught.value)


def test_a_control_token_that_other_programs_would_read_in_a_text_is_refused():
    """A token that no merge reaches makes them look up whole pieces, control tokens among them."""
    ours = RankTokenizer("t", BYTES | {b"zzz": 256}, BPE_PATTERN, {END_OF_TEXT: 258, "hello": 300})
    assert 300 not in ours.encode("hello")
    with pytest.raises(UserError, match="the text 'hello' would become the control token"):
        tokenizer_json(ours)
    assert tokenizer_json(RankTokenizer("t", BYTES, ONE_CHARACTER, {END_OF_TEXT: 258,
                                                                    "hello": 300}))
