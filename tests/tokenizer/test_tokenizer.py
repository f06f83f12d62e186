"""Text to token ids and back: any bytes survive, and text never becomes a control token."""

from __future__ import annotations

import random
import sysconfig
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from gpt.errors import UserError
from gpt.tokenizer import (
    BPE_PATTERN,
    END_OF_TEXT,
    RankTokenizer,
    bpe_ranks,
    build_tokenizer,
    needs_corpus,
    train_bpe_with_tokenizers,
)
from gpt.tokenizer.building import MOST_TOKEN_BYTES
from gpt.tokenizer.fast_encoding import MARKS
from gpt.tokenizer.rank_tokenizer import MOST_BLANKS

GPT2_RANKS = Path(__file__).resolve().parents[3] / "shared/data/gpt2.tiktoken"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
SEEDED = settings(max_examples=40, derandomize=True, database=None, deadline=None)
AWKWARD = st.text() | st.lists(
    st.sampled_from([END_OF_TEXT, "<|", "endoftext", "|>", " ", "\n", "\r\n", "\t", "\u3000", "a",
                     "é", "中", "'s", "'ſ", "12345", "_", "\x1c", "🙂", "e\u0301", "\ufeff"])
).map("".join)


@pytest.fixture(scope="module")
def corpus():
    return [path.read_text(encoding="utf-8") for path in sorted(STDLIB.glob("*.py"))[:30]]


@pytest.fixture(scope="module")
def trained(corpus):
    """What the library `tokenizers` makes of the corpus."""
    return train_bpe_with_tokenizers(599, corpus)


@pytest.fixture(scope="module")
def bpe(trained):
    return RankTokenizer("bpe:600", bpe_ranks(trained), BPE_PATTERN, {END_OF_TEXT: 599})


@pytest.fixture(scope="module")
def gpt2():
    if not GPT2_RANKS.is_file():
        pytest.skip(f"GPT-2's published ranks are not at {GPT2_RANKS}")
    return build_tokenizer(str(GPT2_RANKS))


@pytest.fixture(scope="module", params=["byte", "char", "bpe", "gpt2"])
def tokenizer(request, corpus):
    if request.param in ("bpe", "gpt2"):
        return request.getfixturevalue(request.param)
    return build_tokenizer(request.param, corpus[:3])


@SEEDED
@given(data=st.binary() | AWKWARD.map(str.encode))
@example(data=bytes(range(256)))
@example(data="é".encode()[:1] + b"a" + "🙂".encode()[1:])
def test_any_bytes_survive_a_round_trip(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_every_id_has_a_text_to_be_shown():
    tokenizer = build_tokenizer("byte")
    assert [tokenizer.token_text(i) for i in (97, 0xe2, tokenizer.end_of_text, 10**6)] == [
        "a", "\\xe2", END_OF_TEXT, ""]


@SEEDED
@given(text=AWKWARD)
def test_any_text_survives_a_round_trip_by_every_way_of_encoding_it(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_bytes(text.encode()) == ids
    assert tokenizer.encode_array(text).tolist() == ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@SEEDED
@given(data=st.binary())
def test_bytes_that_came_as_lone_surrogates_are_kept(tokenizer, data):
    text = data.decode("utf-8", "surrogateescape")
    assert tokenizer.encode(text) == tokenizer.encode_bytes(data)


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00", "\udfff"])
def test_any_other_lone_surrogate_becomes_a_replacement_character(text):
    byte = build_tokenizer("byte")
    assert "\ufffd" in byte.decode(byte.encode(text))


@SEEDED
@given(text=AWKWARD)
@example(text=END_OF_TEXT)
@example(text=f"a {END_OF_TEXT}\n{END_OF_TEXT}{END_OF_TEXT}")
def test_text_never_becomes_a_control_token(tokenizer, text):
    for ids in (tokenizer.encode(text), tokenizer.encode_bytes(text.encode() + b"\xff"),
                tokenizer.encode_array(text)):
        assert tokenizer.end_of_text not in ids


def test_tiktoken_left_to_itself_would_make_it_one(tokenizer):
    ids = tokenizer._encoding.encode(END_OF_TEXT, allowed_special="all")
    assert ids == [tokenizer.end_of_text]


def test_every_id_decodes_and_the_control_token_is_the_last(tokenizer):
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    assert len(set(tokens)) == tokenizer.vocab_size


def test_vocabulary_sizes(corpus, bpe):
    assert build_tokenizer("byte").vocab_size == 257
    assert (bpe.vocab_size, bpe.end_of_text) == (600, 599)
    character_count = len(set("".join(corpus[:3])))
    assert 257 <= build_tokenizer("char", corpus[:3]).vocab_size <= 257 + character_count


def test_gpt2_ids_are_the_published_ones(gpt2):
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50_257, 50_256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746,
                                                          11]


def test_training_and_encoding_agree_on_every_document(bpe, trained, corpus):
    assert len(corpus) == 30
    for text in corpus:
        assert bpe.encode(text) == trained.encode(text).ids


@SEEDED
@given(text=AWKWARD)
def test_training_and_encoding_agree_on_any_text(bpe, trained, text):
    assert bpe.encode(text) == trained.encode(text).ids


def test_with_another_pattern_they_would_disagree(bpe, trained, corpus):
    other = RankTokenizer("other", bpe.ranks, r"\s+|\S+", bpe.specials)
    assert any(other.encode(text) != trained.encode(text).ids for text in corpus)


def test_bpe_is_trained_to_the_size_asked_for_and_to_the_same_ranks_each_time(bpe, corpus):
    again = build_tokenizer("bpe:600", iter(corpus))
    assert again.fingerprint == bpe.fingerprint
    assert len(bpe.ranks) == 599
    assert bpe.fingerprint != build_tokenizer("bpe:600", corpus[:5]).fingerprint


def test_bpe_pieces_are_words_numbers_of_three_digits_punctuation_and_white_space():
    split = pre_tokenizers.Split(Regex(BPE_PATTERN), behavior="isolated")
    found = split.pre_tokenize_str("I'LL don't été_x 12345 (ab)!?\n\n  if\t\ty  ")
    assert [piece for piece, _ in found] == [
        "I", "'LL", " don", "'t", " été", "_x", " ", "123", "45", " (", "ab", ")!?\n\n", " ", " if",
        "\t", "\ty", "  "]


def test_bpe_writes_text_like_its_corpus_in_fewer_tokens_than_bytes(bpe, corpus):
    assert len(bpe.encode(corpus[0])) < 0.6 * len(corpus[0].encode())


def test_a_corpus_too_small_for_the_vocabulary_leaves_no_id_that_cannot_be_decoded():
    small = build_tokenizer("bpe:600", ["hello"] * 9)
    assert small.vocab_size < 600
    assert all(small.decode_bytes([i]) for i in range(small.vocab_size) if i != small.end_of_text)
    assert small.end_of_text == small.vocab_size - 1


def without_blanks(letters: int) -> list[str]:
    """One passage of random letters, many times over, as in sequences of genes."""
    draw = random.Random(3)
    passage = "".join(draw.choice("ACGT") for _ in range(letters))
    return [passage[i:] + passage for i in range(0, letters, letters // 40)]


@pytest.mark.parametrize("texts", [list, iter])
def test_no_token_of_bpe_is_longer_than_the_bound_and_it_says_where_that_binds(texts, capsys):
    corpus = without_blanks(6000)
    open_end = bpe_ranks(train_bpe_with_tokenizers(1499, corpus))
    longest = max(map(len, open_end))
    assert longest > 2000 and len(open_end) == 1499
    bounded = build_tokenizer("bpe:1500", texts(corpus))
    assert max(map(len, bounded.ranks)) == MOST_TOKEN_BYTES
    assert bounded.vocab_size == 1500
    assert capsys.readouterr().err == (
        f"note: bpe:1500 would have tokens of up to {longest:,} bytes, from text that repeats "
        "long stretches without blanks; it is trained again with tokens of at most 128 bytes\n")
    assert bounded.decode(bounded.encode(corpus[7])) == corpus[7]


def test_a_token_may_be_as_long_as_the_bound_and_counts_bytes_and_not_characters(capsys):
    for run in ("x" * MOST_TOKEN_BYTES, "中" * 42):
        ranks = build_tokenizer("bpe:800", [run, run, "y"]).ranks
        assert max(map(len, ranks)) == len(run.encode()) and capsys.readouterr().err == ""
    for bound, longest in ((12, 12), (11, 6)):  # two characters of three bytes, doubled or not
        trained = train_bpe_with_tokenizers(800, ["中" * 100] * 3, bound)
        assert max(map(len, bpe_ranks(trained))) == longest


def test_the_bound_is_the_length_of_gpt2s_longest_token(gpt2):
    assert max(map(len, gpt2.ranks)) == MOST_TOKEN_BYTES


def test_corpora_whose_tokens_stay_below_the_bound_have_the_vocabulary_of_no_bound(corpus, bpe,
                                                                                  capsys):
    texts = [path.read_text(encoding="utf-8") for path in sorted(STDLIB.glob("*.py"))]
    for size, some in ((600, corpus), (8192, texts)):
        made = build_tokenizer(f"bpe:{size}", some)
        for bound in (None, MOST_TOKEN_BYTES):
            assert made.ranks == bpe_ranks(train_bpe_with_tokenizers(size - 1, some, bound))
        assert made.ranks != bpe_ranks(train_bpe_with_tokenizers(size - 1, some, 5))
    assert capsys.readouterr().err == ""


def test_characters_are_numbered_in_code_point_order_and_unseen_ones_are_bytes():
    char = build_tokenizer("char", ["bca", "é"])
    assert char.encode("abcé") == [0, 1, 2, 3]
    assert char.decode_bytes([4]) == b"\0"
    assert char.byte_lengths()[char.encode("ü")].tolist() == [1, 1]


def test_byte_ids_are_bytes():
    assert build_tokenizer("byte").encode("é\n") == [0xC3, 0xA9, 10]


@SEEDED
@given(text=AWKWARD)
def test_the_bytes_of_the_tokens_add_up_to_the_bytes_of_the_text(tokenizer, text):
    lengths = tokenizer.byte_lengths()
    ids = [*tokenizer.encode(text), tokenizer.end_of_text]
    assert lengths.shape == (tokenizer.vocab_size,) and lengths.dtype == np.int64
    assert lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("unit", [" ", "\u3000", "a"])
def test_a_run_of_a_million_equal_characters_encodes(tokenizer, unit):
    text = "x" + unit * 1_000_000 + "y"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("unit", ["\n", " \n"])
def test_a_million_line_breaks_encode(tokenizer, unit):
    text = "x" + unit * (1_000_000 // len(unit)) + "y"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("marks", ["", MARKS])
def test_long_blanks_are_whole_unless_only_the_slow_way_is_left(bpe, marks):
    """All eight marks in a text shut the fast way; there, a run over MOST_BLANKS is cut."""
    for length in (4000, 4095, 4096, 4097, 100_000, MOST_BLANKS):
        short = f"a{' ' * length}b{marks}"
        assert bpe.encode(short) == bpe._encoding.encode_ordinary(short)
    length = 2 * MOST_BLANKS + 7
    long = f"a{' ' * length}b{marks}"
    parts = ["a" + " " * MOST_BLANKS, " " * MOST_BLANKS, " " * 7 + "b" + marks]
    whole = [*bpe.encode("a"), *bpe._encoding._encode_single_piece(" " * (length - 1)),
             *bpe.encode(" b"), *bpe.encode(marks)]
    cut = [i for part in parts for i in bpe.encode(part)]
    assert bpe.encode(long) == (cut if marks else whole)
    assert bpe.decode(bpe.encode(long)) == long


@SEEDED
@given(text=st.text() | AWKWARD | st.lists(st.sampled_from([*MARKS, " ", "\n", "a"])).map("".join))
def test_ids_are_tiktokens_own_for_every_text(tokenizer, text):
    assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)
    assert tokenizer.encode_array(text).dtype == np.uint32


def test_characters_are_gathered_one_text_at_a_time():
    def texts() -> Iterator[str]:
        """So many that the sets of their characters at once would take 43 MB."""
        for i in range(200_000):
            yield "ab" if i % 2 else "bc"

    tracemalloc.start()
    try:
        assert build_tokenizer("char", texts()).encode("abc") == [0, 1, 2]
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [257, 10**6, -1, 2**32, 2**70])
def test_an_id_that_is_no_token_is_refused(wrong):
    with pytest.raises(UserError, match="is not in tokenizer byte, whose ids lie in 0 to 256"):
        build_tokenizer("byte").decode([65, wrong])


@pytest.mark.parametrize("wrong", [257, -1, 2**70])
def test_the_refusal_of_an_id_names_it(wrong):
    with pytest.raises(UserError, match=f"^token id {wrong} is not in tokenizer byte"):
        build_tokenizer("byte").decode([wrong])


def test_ids_may_be_numpy_integers(bpe):
    assert bpe.decode(np.array(bpe.encode("def main"))) == "def main"


@pytest.mark.parametrize(("spec", "message"), [
    ("bpe:256", "bpe:256: the size must lie in 257 (the bytes and <|endoftext|>) to 1048576"),
    ("bpe:1048577", "bpe:1048577: the size must lie in 257 "),
    ("bpe:", "unknown tokenizer 'bpe:': choose byte, char, bpe:N, gpt2, r50k_base, p50k_base, "
             "cl100k_base, o200k_base, a .tiktoken file, the tokenizer folder of a dataset or "
             "checkpoint, or a Hugging Face folder with a tokenizer.json"),
    ("bpe:-5", "unknown tokenizer 'bpe:-5': choose byte"),
    ("GPT2", "unknown tokenizer 'GPT2': choose byte"),
    ("", "unknown tokenizer '': choose byte"),
    ("none.tiktoken", "there is no rank file none.tiktoken; give the path of a .tiktoken file")])
def test_a_specification_that_means_nothing_is_refused(spec, message):
    with pytest.raises(UserError) as caught:
        build_tokenizer(spec, ["text"])
    assert str(caught.value).startswith(message)


def test_the_smallest_bpe_has_the_bytes_alone():
    assert len(build_tokenizer("bpe:257", ["hello hello"]).ranks) == 256


def test_only_char_and_bpe_need_the_corpus():
    assert [spec for spec in ("byte", "char", "bpe:300", "gpt2", "x.tiktoken")
            if needs_corpus(spec)] == ["char", "bpe:300"]
