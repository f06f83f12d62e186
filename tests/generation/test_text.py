"""Text as it grows: whole characters, and nothing of a stop text."""

from __future__ import annotations

import random

import pytest

from gpt.generation.text import TextStream


def stream(*pieces, stop=()):
    """What is shown after each piece, and at the end, without what is empty."""
    text, shown = TextStream(stop), []
    for piece in pieces:
        shown.append(text.push(piece.encode() if isinstance(piece, str) else piece))
        if text.stopped:
            break
    return list(filter(None, [*shown, text.finish()]))


def test_characters_spread_over_tokens_appear_whole():
    data = "aé日🙂b".encode()
    assert stream(*(data[i:i + 1] for i in range(len(data)))) == ["a", "é", "日", "🙂", "b"]
    assert stream(b"a\xe6\x97") == ["a", "\ufffd"]  # a character that never completes


def test_a_stop_text_is_found_across_pieces_and_never_shown():
    assert "".join(stream("ab", "c-E", "N", "D tail", stop=["END"])) == "abc-"
    assert "".join(stream("abc", "def", stop=["cd", "b"])) == "a"
    assert "".join(stream("EN", "X", stop=["END"])) == "ENX"
    assert "".join(stream("aaE", "N", stop=["END"])) == "aaEN"  # withheld text comes at the end
    assert stream("x", "y", stop=[""]) == ["x", "y"]


def test_nothing_follows_a_stop_text():
    text = TextStream(["stop"])
    assert text.push(b"a stop and more") == "a " and text.stopped and text.finish() == ""
    with pytest.raises(AssertionError, match="nothing follows"):
        text.push(b"more")


def test_a_stop_text_that_does_not_count_yet_is_text_but_for_what_may_be_another():
    text = TextStream(["b"])
    assert text.push(b"ab", may_stop=False) == "ab" and not text.stopped
    assert text.push(b"cbd") == "c" and text.stopped
    text = TextStream(["END"])
    assert text.push(b"xENDxEN", may_stop=False) == "xENDx"
    assert text.push(b"Dyy") == "" and text.stopped
    text = TextStream(["b", "abc"])
    assert text.push(b"ab", may_stop=False) == ""  # it may become abc
    assert text.push(b"x") == "abx" and not text.stopped
    assert text.push(b"aab") == "aa" and text.stopped


def test_however_a_text_is_cut_one_stop_text_is_found_alike():
    generator = random.Random(0)
    for _ in range(500):
        whole = "".join(generator.choices("abé🙂", k=20))
        stop = "".join(generator.choices("abé🙂", k=generator.randint(1, 3)))
        data, cuts = whole.encode(), sorted(generator.choices(range(1, 30), k=6))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert "".join(stream(*pieces, stop=[stop])) == whole.partition(stop)[0]


def test_of_several_stop_texts_none_is_ever_shown():
    generator = random.Random(1)
    for _ in range(500):
        whole = "".join(generator.choices("ab", k=20))
        stops = ["".join(generator.choices("ab", k=generator.randint(2, 5))) for _ in range(2)]
        shown = "".join(stream(*whole, stop=stops))
        assert whole.startswith(shown) and not any(stop in shown for stop in stops)
        assert shown == whole or any(stop in whole for stop in stops)


def test_of_stop_texts_in_one_piece_the_first_counts():
    for stops in (["b", "d"], ["d", "b"]):
        text = TextStream(stops)
        assert text.push(b"abcd") == "a" and text.stopped
