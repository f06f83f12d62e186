"""Text in pieces that encode like the whole, and text that is none."""

from __future__ import annotations

import codecs
import gzip
import sysconfig
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.sources import streams
from data.sources import text as text_module
from data.sources.bad_text import BadText, Incident
from data.sources.streams import Meter
from data.sources.text import cut_pieces, first_problem, in_pieces, read_text, safe_cut
from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT, KNOWN_FILES, RankTokenizer, Tokenizer, build_tokenizer
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    QWEN2_PATTERN,
)
from tests.data.sources.sample_files import PACKERS, file_of, read, refusal
from tests.tiny import SHARED

GPT2_RANKS = SHARED / "gpt2.tiktoken"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
SEEDED = settings(max_examples=60, derandomize=True, database=None, deadline=None)
POLICIES = ["error", "replace", "skip"]


@pytest.fixture(autouse=True)
def _few_pieces_are_kept_together(monkeypatch):
    monkeypatch.setattr(text_module, "MOST_PIECES", 16)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pieces(content: str | bytes, policy: str = "error") -> list[str]:
    return list(read_text(file_of("piece.txt", content), BadText(policy), Meter()))


# Pieces


AWKWARD = st.text(st.sampled_from("aé中_1. '\n\r\t\u3000\x85\x1c\u2028-sS🙂\ufeff"), max_size=400)


@SEEDED
@given(text=AWKWARD, size=st.integers(1, 50))
def test_pieces_are_the_text(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE_BYTES", size)
        found = pieces(text)
        assert "".join(in_pieces(text)) == text and all(in_pieces(text))
    assert "".join(found) == text.removeprefix("\ufeff")
    assert all(found)


@pytest.fixture(scope="module")
def some_text():
    return "\n".join((STDLIB / name).read_text(encoding="utf-8")
                     for name in ("ast.py", "heapq.py", "textwrap.py"))


PATTERNS = ["byte", "char", "bpe", "100256", "199998", "50256", "50280", "gpt2"]


@pytest.fixture(scope="module")
def tokenizers(some_text):
    """Every kind of pattern that a tokenizer of ours has."""
    bpe = build_tokenizer("bpe:600", [some_text])
    found = {"byte": build_tokenizer("byte"), "char": build_tokenizer("char", [some_text]),
             "bpe": bpe}
    for ranks, (pattern, _) in KNOWN_FILES.items():
        found[str(ranks)] = RankTokenizer("t", bpe.ranks, pattern, bpe.specials)
    if GPT2_RANKS.is_file():
        found["gpt2"] = build_tokenizer(str(GPT2_RANKS))
    return found


@pytest.fixture(params=PATTERNS)
def tokenizer(request, tokenizers):
    if request.param not in tokenizers:
        pytest.skip(f"GPT-2's published ranks are not at {GPT2_RANKS}")
    return tokenizers[request.param]


def encode_pieces(tokenizer: Tokenizer, found: list[str]) -> list[int]:
    return [i for piece in found for i in tokenizer.encode(piece)]


@pytest.mark.parametrize("size", [512, 4096])
def test_pieces_of_real_text_encode_like_the_whole(size, tokenizer, some_text, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", size)
    found = pieces(some_text)
    assert len(found) > len(some_text) / size / 3
    assert encode_pieces(tokenizer, found) == tokenizer.encode(some_text)


BORDERS = st.lists(max_size=120, elements=st.sampled_from(
    ["\n", "\n\n", "\r\n", " \n", "\n ", "\t", "  ", " ", "a", "bc", "é", "1", "234", "'s", "_",
     ".", "!!", "\u3000", "\x1c", "\x85", "\u2028", "e\u0301", "don't", "x y", "⑴", "\u0958",
     "\u0958\n", "²", "中。\n"])).map("".join)
ANY_TEXT = st.lists(st.text(max_size=8), max_size=60).map(" ".join)


@settings(SEEDED, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(BORDERS, ANY_TEXT), size=st.integers(4, 40))
@example(text="x\n\nyz" * 9, size=4)
def test_pieces_encode_like_the_whole_wherever_they_end(tokenizer, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE_BYTES", size)
        found = [pieces(text), list(in_pieces(text.removeprefix("\ufeff")))]
    if len(text) <= 16 * size:  # no cut was forced
        for one in found:
            assert encode_pieces(tokenizer, one) == tokenizer.encode(text.removeprefix("\ufeff"))


@pytest.mark.parametrize("name", ["bpe", "50256", "100256", "199998"])
def test_pieces_cut_anywhere_would_encode_otherwise(name, tokenizers, some_text):
    found = [some_text[i:i + 512] for i in range(0, len(some_text), 512)]
    assert encode_pieces(tokenizers[name], found) != tokenizers[name].encode(some_text)


def test_text_that_fits_into_a_piece_is_one_piece():
    for text in ("one two three. ", "a b", " \n"):
        assert pieces(text) == list(in_pieces(text)) == [text]
    assert pieces("") == list(in_pieces("")) == []


@pytest.mark.parametrize("make", [pieces, lambda text: list(in_pieces(text))])
def test_a_text_without_any_blank_is_cut_into_bounded_pieces(make, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 1024)
    found = make("x" * 100_000)
    assert "".join(found) == "x" * 100_000
    assert max(map(len, found)) == 16 * 1024


def test_a_text_without_any_blank_has_the_tokens_of_the_whole_below_that_bound(tokenizer,
                                                                              monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 1024)
    text = "".join(chr(97 + i * i % 26) for i in range(16 * 1024))
    assert pieces(text) == [text]
    found = pieces(text * 3)
    assert len(found) == 3
    whole = tokenizer.encode(text * 3)
    if len(tokenizer.encode("x" * 9)) == 9:  # a token per character, so any cut is safe
        assert encode_pieces(tokenizer, found) == whole
    assert abs(len(encode_pieces(tokenizer, found)) - len(whole)) <= 2 * 4  # near the two cuts


def test_a_blank_anywhere_in_16_pieces_is_found_before_a_cut_is_forced():
    text = "a word, " + "x" * 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE_BYTES", 4)
        patch.setattr(text_module, "_LOOK_BACK", (2, 4))
        assert safe_cut(text) == 1 == text.index(" word")
        assert safe_cut("x" * 64) == 64 and safe_cut("x" * 63) == 0


def test_words_on_one_line_are_cut_between_words(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 64)
    found = pieces("word and another " * 100)
    assert max(map(len, found)) < 128
    assert all(piece.startswith(" ") and not piece[1].isspace() for piece in found[1:-1])


def test_a_long_line_takes_no_more_memory_than_its_pieces(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 1 << 14)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 14)
    file = file_of("long.txt", b"x" * (2 << 20))
    list(read_text(file, BadText("error"), Meter()))  # what is kept between calls
    tracemalloc.start()
    count = sum(len(piece) for piece in read_text(file, BadText("error"), Meter()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2 << 20
    assert peak < 1 << 20  # three times 16 pieces


def test_pieces_of_a_long_text_never_pile_up(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 16)
    asked = 0

    def texts():
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield "word " * 4

    found = cut_pieces(texts())
    next(found)
    assert asked == 2


# What is kept, and what is bad


def test_line_breaks_of_every_system_nul_and_blanks_are_kept():
    for text in ("a\r\nb\rc\n", "a\0b", " \n\t\n", "\u2028", "\0" * 10):
        assert "".join(pieces(text)) == text


@pytest.mark.parametrize("policy", POLICIES)
def test_a_byte_order_mark_is_dropped_at_the_start_alone(policy):
    assert pieces(b"\xef\xbb\xbfa\xef\xbb\xbfb", policy) == ["a\ufeffb"]
    assert pieces(b"\xef\xbb\xbf", policy) == []


def test_an_empty_file_has_no_pieces():
    for suffix, pack in PACKERS.items():
        assert list(read_text(file_of(f"a.txt{suffix}", pack(b"")), BadText("error"),
                              Meter())) == []


BAD = [(b"good\nfine\nbad \xff here\nmore\n", 3), ("é".encode()[:1], 1), (b"a\nb\xc3", 2),
       ("a\n\udc80".encode("utf-8", "surrogatepass"), 2), (b"a\n" * 5000 + b"\xff", 5001),
       (b"a\r\nb\r\n\xc0\x80", 3), (b"\xe9t\xe9 1998\n", 1)]
NO_TEXT = [("hi\nthere".encode("utf-16"), 1), (b"%PDF-1.7\n", 1),
           (codecs.BOM_UTF16_BE + "hi\nthere".encode("utf-16-be"), 1)]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("data", "line"), BAD)
def test_invalid_text_is_refused_with_file_and_line(data, line, size, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", max(size, len(data) // 100))
    with pytest.raises(UserError) as caught:
        pieces(data)
    assert str(caught.value).startswith(f"piece.txt, line {line}: the text is not UTF-8")
    assert str(caught.value).endswith("; mend the file, or set on_bad_text=replace or "
                                      "on_bad_text=skip")


def test_utf_16_is_called_by_its_name():
    with pytest.raises(UserError, match="line 1: the text is not UTF-8 but UTF-16: set "
                                        "encoding=utf-16; mend"):
        pieces("hi\nthere".encode("utf-16"))


@pytest.mark.parametrize("size", [1 << 20, 64])
@pytest.mark.parametrize(("data", "line"), BAD)
def test_invalid_text_is_replaced_and_its_document_counted_once(data, line, size, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", size)
    bad_text = BadText("replace")
    assert read(file_of("piece.txt", data), bad_text) == [data.decode("utf-8", "replace")]
    assert bad_text.tally.counts == {"replaced": 1}
    [incident] = bad_text.tally.incidents
    assert (incident.file, incident.line, incident.done) == ("piece.txt", line, "replaced")


@pytest.mark.parametrize("data", [data for data, _ in NO_TEXT])
def test_of_what_is_no_text_nothing_is_mended(data):
    bad_text = BadText("replace")
    assert read(file_of("piece.txt", data), bad_text) == [""]
    assert bad_text.tally.counts == {"skipped": 1}
    assert bad_text.tally.incidents[0].line == 1
    assert bad_text.tally.incidents[0].problem in refusal(read, file_of("piece.txt", data))


@pytest.mark.parametrize(("data", "line"), BAD + NO_TEXT)
def test_a_document_with_invalid_text_is_skipped_whole_and_counted_once(data, line):
    bad_text = BadText("skip")
    assert list(read_text(file_of("piece.txt", data), bad_text, Meter())) == []
    assert bad_text.tally.counts == {"skipped": 1}
    assert bad_text.tally.incidents == [Incident(
        "piece.txt", line, bad_text.tally.incidents[0].problem, "skipped")]


@pytest.mark.parametrize("policy", POLICIES)
def test_valid_text_is_never_counted_even_if_it_holds_replacement_characters(policy):
    bad_text = BadText(policy)
    assert read(file_of("a.txt", "a\ufffdé"), bad_text) == ["a\ufffdé"]
    assert not bad_text.tally.counts


@pytest.mark.parametrize("policy", POLICIES)
def test_a_file_full_of_replacement_characters_is_looked_through_once(policy, monkeypatch):
    """Else a large file would be read as often as it has pieces."""
    looks = []
    monkeypatch.setattr(text_module, "PIECE_BYTES", 64)
    monkeypatch.setattr(text_module, "first_problem", lambda file: looks.append(file))
    text = "word \ufffd " * 500
    assert read(file_of("a.txt", text), BadText(policy)) == [text]
    assert len(looks) == (policy != "error")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_text_that_breaks_off_goes_by_the_policy(suffix):
    lines = "".join(f"line {i * 7919 % 10007}\n" for i in range(20_000))
    packed = PACKERS[suffix](lines.encode())
    file = file_of(f"a.txt{suffix}", packed[:len(packed) * 3 // 4])
    with pytest.raises(UserError, match=rf"^a\.txt\{suffix}, line \d+: the file breaks off or is "
                                        r"damaged \(.+\); mend the file, or set on_bad_text="):
        read(file)
    bad_text = BadText("skip")
    assert read(file, bad_text) == [""] and bad_text.tally.counts == {"skipped": 1}
    bad_text = BadText("replace")
    [found] = read(file, bad_text)
    assert lines.startswith(found) and bad_text.tally.counts == {"replaced": 1}
    assert bad_text.tally.incidents[0].line == found.count("\n") + 1
    assert found or suffix == ".bz2"  # whose blocks are larger than this text


def test_a_character_that_a_broken_file_ends_in_is_replaced():
    packed = gzip.compress(b"abc\xe4", 0)
    bad_text = BadText("replace")
    assert read(file_of("a.txt.gz", packed[:-8]), bad_text) == ["abc\ufffd"]
    assert bad_text.tally.counts == {"replaced": 1}


def test_the_first_problem_is_found_in_a_packed_file_too():
    assert first_problem(file_of("a.txt.gz", gzip.compress(b"a\n\nb\xff"))) == (
        3, "the text is not UTF-8 (invalid start byte)")
    assert first_problem(file_of("a.txt.gz", gzip.compress(b"a\n\nb"))) is None


CHINESE = "\u4e2d\u6587\uff0c\u6ca1\u6709\u7a7a\u683c\u3002\n"


@pytest.mark.parametrize("pattern", [BPE_PATTERN, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN,
                                     QWEN2_PATTERN])
@SEEDED
@given(text=st.text("\n\n\r\t \u00a0\u3000'abZs9.,!\u3002\u4e2d\u0301-", max_size=30))
@example(text="a.\nb")
@example(text=CHINESE * 2)
def test_no_pattern_joins_what_lies_on_the_two_sides_of_a_safe_place(pattern, text):
    tokenizer = RankTokenizer("bytes", {bytes([b]): b for b in range(256)} | {
        word.encode(): 256 + i for i, word in enumerate([".\n", "\n\n", "\nb", " b", "ab", "\n "])},
        pattern, {END_OF_TEXT: 300})
    whole = tokenizer._encoding.encode_ordinary(text)
    for place in (match.end() for match in text_module._SAFE.finditer(text)):
        assert tokenizer.encode(text[:place]) + tokenizer.encode(text[place:]) == whole


def test_a_text_without_blanks_between_words_is_cut_after_its_lines(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", 64)
    found = list(in_pieces(CHINESE * 40))
    assert "".join(found) == CHINESE * 40 and len(found) > 5
    assert all(piece.endswith("\n") for piece in found)
