"""The fast encoding gives tiktoken's ids for any text, whatever blanks stand in it."""

from __future__ import annotations

import random

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT, RankTokenizer, build_tokenizer, read_ranks
from gpt.tokenizer.fast_encoding import BLANKS, MARKS, FastEncoding
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    QWEN2_PATTERN,
)
from tests.tiny import SHARED

SEEDED = settings(max_examples=200, derandomize=True, database=None, deadline=None)
RANKS_FILE = SHARED / "gpt2.tiktoken"
PATTERNS = {"gpt2": GPT2_PATTERN, "bpe": BPE_PATTERN, "o200k": O200K_PATTERN,
            "qwen2": QWEN2_PATTERN}
BYTES = {bytes([b]): b for b in range(256)}
PARTS = [*BLANKS, *MARKS, "\x1c", "\x1d", "\x1e", "\x1f", "\u200b", "\ufeff", "\x7f", "a", "Wörd",
         "中", "'s", "'LL", "’t", "12", "٣", "_", "!?", "/", "🙂", "e\u0301", "ǅ", END_OF_TEXT]
AWKWARD = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=30).map("".join)


@pytest.fixture(scope="module")
def ranks():
    """GPT-2's merges, or ranks of pairs, if its file is not here."""
    if RANKS_FILE.is_file():
        return read_ranks(RANKS_FILE)
    pairs = [a.encode() + b.encode() for a in BLANKS + "abc'" for b in BLANKS + "abc'"]
    return BYTES | {pair: 256 + i for i, pair in enumerate(dict.fromkeys(pairs))}


@pytest.fixture(scope="module", params=PATTERNS)
def both(request, ranks):
    """(the fast encoding, tiktoken's own) of a pattern."""
    pattern = PATTERNS[request.param]
    fast = FastEncoding.of(pattern, ranks)
    assert fast is not None
    return fast, tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks,
                                   special_tokens={END_OF_TEXT: max(ranks.values()) + 1})


@SEEDED
@given(text=st.text() | AWKWARD)
def test_any_text_has_tiktokens_ids(both, text):
    fast, plain = both
    found = fast.encode(text)
    if found is None:
        assert all(mark in text for mark in MARKS)
    else:
        assert found.tolist() == plain.encode_ordinary(text)


def test_every_run_of_three_blanks_has_tiktokens_ids_wherever_it_stands(both):
    fast, plain = both
    for first in (a + b for a in BLANKS for b in BLANKS):
        runs = [first + c for c in BLANKS]
        text = "".join(f"{run}w{run}!{run}7" for run in runs) + first
        assert fast.encode(text).tolist() == plain.encode_ordinary(text), repr(first)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_every_character_beside_blanks_has_tiktokens_ids(pattern):
    """Python's idea of a blank is not tiktoken's: there lie U+001C to U+001F, for example.

    Two spaces are one token here, so that a cut between them shows.
    """
    ranks = BYTES | {b"  ": 256}
    fast = FastEncoding.of(pattern, ranks)
    plain = tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    everyone = [chr(i) for i in [*range(0x3100), *random.Random(0).sample(range(0xE000, 0x110000),
                                                                           3000)]]
    for start in range(0, len(everyone), 500):
        text = "".join(f"{c}  {c}\n{c} \n {c}{c}" for c in everyone[start:start + 500])
        if (found := fast.encode(text)) is not None:
            assert found.tolist() == plain.encode_ordinary(text)


@pytest.mark.parametrize("unit", [" ", "\n", "\u3000", "\t \r\n", "\x85"])
def test_runs_of_a_hundred_thousand_blanks_have_tiktokens_ids(both, unit):
    """tiktoken's own look-ahead overflows on them; a run is one piece but for its last blank."""
    fast, plain = both
    blanks = unit * (100_000 // len(unit))
    inner, last = blanks[:-1], blanks[-1]
    if unit[-1] in "\r\n" and plain._pat_str != GPT2_PATTERN:
        inner, last = blanks, ""
    expected = [*plain.encode_ordinary("a"), *plain._encode_single_piece(inner.encode()),
                *plain.encode_ordinary(last + "b")]
    assert fast.encode(f"a{blanks}b").tolist() == expected
    assert fast.encode(blanks).tolist() == plain._encode_single_piece(blanks.encode())


@pytest.mark.parametrize("unit", ["x", "é", "!", "7", "\u0301"])
def test_long_words_have_tiktokens_ids(both, unit):
    fast, plain = both
    text = f"so {unit * 30_000}  and {unit * 999}"
    assert fast.encode(text).tolist() == plain.encode_ordinary(text)


def test_a_text_with_all_eight_marks_goes_the_slow_way_to_the_same_ids(both, ranks):
    fast, plain = both
    assert fast.encode(MARKS) is None
    assert fast.encode(MARKS[:7]).tolist() == plain.encode_ordinary(MARKS[:7])
    tokenizer = RankTokenizer("t", ranks, plain._pat_str, plain._special_tokens)
    text = f"a  b {MARKS}\n  c"
    assert tokenizer.encode(text) == plain.encode_ordinary(text)


@pytest.mark.parametrize("pattern", [
    CL100K_PATTERN, r"\s+|\S+", GPT2_PATTERN[1:], r"\t+|" + BPE_PATTERN, ""])
def test_another_pattern_has_no_fast_form(pattern):
    """`\\t+` before a known ending: cutting between two tabs would change its pieces."""
    assert FastEncoding.of(pattern, BYTES) is None


def test_without_the_cut_the_ids_would_differ(both, monkeypatch):
    fast, plain = both
    monkeypatch.setattr(fast, "_cut", lambda text, border, mark: text)
    assert fast.encode("a   b").tolist() != plain.encode_ordinary("a   b")


def test_a_tokenizer_without_an_end_of_text_is_refused():
    with pytest.raises(UserError, match=r"it has no <\|endoftext\|>"):
        RankTokenizer("t", BYTES, ".", {})
    assert build_tokenizer("byte").end_of_text == 256


def test_texts_that_are_encoded_at_once_get_the_ids_that_they_have_alone(both):
    fast, plain = both
    texts = ["a  b\n\n", "", "  ", " c", "d \t\n e  ", "\0\1\2", "x\u3000 \u00a0y ", ""]
    expected = [plain.encode_ordinary(text) for text in texts]
    assert [ids.tolist() for ids in fast.encode_all(texts)] == expected
    joined = [i for ids in expected for i in ids]
    assert plain.encode_ordinary("".join(texts)) != joined  # borders matter


def test_texts_that_leave_no_second_mark_are_encoded_one_by_one(both):
    fast, plain = both
    texts = ["a  b", MARKS[:4] + "  c ", MARKS[4:7], MARKS]
    *found, last = fast.encode_all(texts)
    assert [ids.tolist() for ids in found] == [plain.encode_ordinary(t) for t in texts[:3]]
    assert last is None


def test_texts_are_prepared_where_that_pays_and_have_the_same_ids(monkeypatch):
    tokenizer, prepared = RankTokenizer("bytes", BYTES, GPT2_PATTERN, {END_OF_TEXT: 256}), []
    encode_all = FastEncoding.encode_all
    monkeypatch.setattr(FastEncoding, "encode_all", lambda encoding, texts: (
        prepared.append(len(texts)), encode_all(encoding, texts))[1])
    for texts in (["ab  c"], ["a  b" * 300], ["a  b"] * 300):
        found = tokenizer.encode_arrays(texts)
        assert [ids.tolist() for ids in found] == [list(text.encode()) for text in texts]
    assert prepared == [1, 300]
