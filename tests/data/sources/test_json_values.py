"""JSON as a stream: what the standard library reads at once, at any size of the window."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.sources import json_values
from data.sources.json_values import JsonValues
from data.sources.streams import BrokenFile

SEEDED = settings(max_examples=150, derandomize=True, database=None, deadline=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats(-1e6, 1e6)
    | st.text(st.sampled_from('a"\\é🙂\n[]{},:'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=3), max_leaves=8)


def values(data: bytes | str, window: int = 1 << 20,
           most: int = 1 << 20) -> list[tuple[int, object]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "BLOCK_BYTES", window)
        data = data.encode() if isinstance(data, str) else data
        return list(JsonValues(io.BytesIO(data), most))


def broken(data: bytes | str, **fields) -> BrokenFile:
    with pytest.raises(BrokenFile) as caught:
        values(data, **fields)
    return caught.value


@SEEDED
@given(items=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 0, 2]),
       window=st.integers(1, 40), ascii_only=st.booleans())
@example(items=[12345.5, 67], indent=None, window=3, ascii_only=True)
def test_the_items_of_an_array_are_those_of_the_whole(items, indent, window, ascii_only):
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    assert [value for _, value in values(text, window)] == items
    assert [value for _, value in values(f"\ufeff \n{text}\n", window)] == items


@SEEDED
@given(records=st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=6),
       separator=st.sampled_from(["", "\n", " \r\n\t"]), window=st.integers(1, 40))
def test_records_may_follow_one_another(records, separator, window):
    text = separator.join(map(json.dumps, records))
    assert [value for _, value in values(text, window)] == records


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_each_value_comes_with_the_line_that_it_starts_in(window):
    text = '[\n  {"a":\n 1},\n\n  {"a": 2}, {"a": "\\n"}\n]\n{"b": 1}'
    assert [line for line, _ in values(text, window)] == [2, 5, 5, 7]


@pytest.mark.parametrize("window", [1, 5, 1 << 20])
def test_an_array_that_breaks_off_anywhere_is_noticed(window):
    text = '[{"a": "b"}, {"c": [1, 2]},\n {"d": null}]'
    for length in range(1, len(text)):
        assert str(broken(text[:length], window=window)).startswith("it is not valid JSON (")
    assert len(values(text, window)) == 3
    assert values("") == values(" \n") == values("[]") == values("[ ]") == []


@pytest.mark.parametrize(("text", "line", "before"), [
    ("[1 2]", 1, 1), ("[1,\n,2]", 2, 1), ("[1,\n]", 2, 1), ("[,1]", 1, 0), ("\n]", 2, 0),
    ('[\n{"a": 1},\n{"a" 2}]', 3, 1), ('{"a": 1},\n{"a": 2}', 1, 1), ('{"a": \n\ntru}', 3, 0),
    ("[1]\nx", 2, 1), ("'a'", 1, 0)])
@pytest.mark.parametrize("window", [1, 1 << 20])
def test_what_is_not_json_is_named_with_its_line_after_what_stands_before(text, line, before,
                                                                          window):
    assert broken(text, window=window).line == line
    found = []
    with pytest.raises(BrokenFile):
        for value in JsonValues(io.BytesIO(text.encode()), 100):
            found.append(value)
    assert len(found) == before


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_deep_nesting_is_refused_without_growing(text):
    assert "nested too deeply" in str(broken(text))


@pytest.mark.parametrize("text", ['[{"text": "' + "x" * 5000, "[" + " " * 10 + "1" * 5000 + "]",
                                  '{"data": [' + '{"text": "a"}, ' * 300 + "]}"])
def test_a_value_longer_than_the_bound_is_read_no_further(text):
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    stream = Counted((text + "x" * 50_000).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "BLOCK_BYTES", 100)
        with pytest.raises(BrokenFile, match="a record is longer than 0 MiB"):
            list(JsonValues(stream, 1000))
    assert stream.taken < 3000


def test_a_value_that_spans_many_windows_is_read_with_few_attempts(monkeypatch):
    attempts = []
    read_value = json_values._read_value
    monkeypatch.setattr(json_values, "_read_value",
                        lambda text, at: attempts.append(at) or read_value(text, at))
    text = json.dumps([{"a": "x" * 100_000}])
    assert len(values(text, window=100, most=1 << 20)) == 1
    assert len(attempts) < 20


def test_bytes_that_are_not_utf_8_arrive_as_lone_surrogates():
    assert values(b'[{"a": "b\xff"}, {"a": "\xc3\xa9"}]', 1) == [
        (1, {"a": "b\udcff"}), (1, {"a": "é"})]
    broken(b'{"a": "\xc3')


def test_long_integers_and_unwritable_numbers_do_not_escape():
    broken("[" + "9" * 10_000 + "]")
    assert len(values("[NaN, Infinity, 1e999]")) == 3
