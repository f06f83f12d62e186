"""Hostile inputs, and what has to become of them: read, or refused in one line, within bounds.

FUZZ_TIMES=10 (make fuzz) tries ten times as many, other ones each time.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from gpt.errors import LONGEST_LINE, UserError, WorkFailed

try:
    import resource
except ImportError:  # Windows
    resource = None

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
SECONDS = 10  # of the processor, for any input
MEMORY_BYTES = 500 << 20


def fuzzed(examples: int) -> settings:
    """So many examples in `make test`, the same each time."""
    return settings(max_examples=examples * TIMES, derandomize=TIMES == 1, database=None,
                    deadline=None, suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate])  # to shrink what failed takes minutes


# ----- What has to become of them

def is_read(read: Callable[[], Any], *also: type[Exception]) -> bool:
    """Whether something is read; False if it is refused, in one line.

    also: errors with which it may be refused as well, as its docstring says.
    """
    try:
        with bounded():
            read()
    except (UserError, WorkFailed) as error:
        assert 0 < len(str(error)) <= LONGEST_LINE
        return False
    except also:
        return False
    return True


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What takes more than SECONDS or MEMORY_BYTES fails, where the system can tell."""
    with _memory_bounded(), _time_bounded():
        yield


@contextlib.contextmanager
def _time_bounded() -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_long(*_: object) -> None:
    raise AssertionError(f"it takes more than {SECONDS} s")


@contextlib.contextmanager
def _memory_bounded() -> Iterator[None]:
    """By addresses: what is asked for counts, whether or not it is ever written to."""
    statm = Path("/proc/self/statm")
    if resource is None or not statm.is_file():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ----- Values

# What json.dumps cannot write, by what stands for it until then.
_SPELLED = {"\ue000nested": "[" * 900 + "]" * 900, "\ue000objects": '{"a":' * 450 + "1" + "}" * 450,
            "\ue000endless": "[" * 100_000, "\ue000digits": "9" * 5000,
            "\ue000digits that are read": "9" * 4300, "\ue000nan": "NaN",
            "\ue000infinity": "Infinity", "\ue000beyond": "1e999", "\ue000float": "1" + "0" * 400}
_TWICE = "\ue001"  # before a name that stands there already
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 255, 2**16, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**400,
                     -2**63, 0.5, -0.0, 1e-300, 1e300, -1e300]), st.integers(-5, 300))
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from([
    "", " ", "\0", "a\0b", "\ud800", "\udcff", "\ufeff", "\u202e", "x" * 5000, "../x", "/", "..",
    "~", "nan", "1e5", "[]", "{", "<|endoftext|>", "(", "(a+)+$", "%s", "{0}", "\n", "a\nb"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from(sorted(_SPELLED)))
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=6)


@st.composite
def mutated(draw: Any, value: Any, values: Any = VALUES) -> Any:
    """A value with one to three places changed: dropped, renamed, replaced, there twice."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        changed = _changed(draw, changed, values)
    return changed


def _changed(draw: Any, value: Any, values: Any) -> Any:
    if not isinstance(value, dict | list) or not value or not draw(st.integers(0, 19)):
        alike = TEXTS if isinstance(value, str) else NUMBERS
        return draw(st.one_of(values, alike) if isinstance(value, str | int | float) else values)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(keys))
    how = draw(st.sampled_from(["inside"] * 6 + ["drop", "rename", "twice"]))
    if how == "drop":
        del value[key]
    elif how == "inside" or isinstance(value, list):
        value[key] = _changed(draw, value[key], values)
    elif how == "rename":
        value[draw(TEXTS)] = value.pop(key)
    elif isinstance(key, str):
        value[_TWICE + key] = draw(values)
    return value


def as_json(value: Any) -> bytes:
    """JSON, as far as it is any."""
    text = json.dumps(value, allow_nan=True).replace(json.dumps(_TWICE)[1:-1], "")
    for name, spelled in _SPELLED.items():
        text = text.replace(json.dumps(name), spelled)
    return text.encode()


# ----- Bytes

_HOSTILE = [b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\n\n",
            b'"', b"'", b",", b":", b"[", b"]", b"{", b"}", b"\\", b"\\u", b"\\ud800", b"-", b"#",
            b"9" * 400, b"[" * 2000, b"{" * 200, b"x" * 2000, b" " * 3000, b"\xe2\x80\xa8"]


def damaged(data: bytes, tokens: list[bytes] | None = None) -> st.SearchStrategy[bytes]:
    """Bytes of which some are cut off, changed, put in, moved or written twice.

    tokens: what is put in, besides what is hostile everywhere.
    """
    places = st.integers(0, len(data))
    put_in = st.one_of(st.binary(max_size=4), st.sampled_from([*(tokens or []), *_HOSTILE]))

    def changed(edits: list[tuple[int, int, bytes, str]]) -> bytes:
        found = data
        for start, length, new, how in edits:
            stop = start + length
            found = {"cut": found[:start], "change": found[:start] + new + found[start + len(new):],
                     "insert": found[:start] + new + found[start:],
                     "drop": found[:start] + found[stop:],
                     "double": found[:stop] + found[start:]}[how]
        return found

    kinds = st.sampled_from(["cut", "change", "change", "insert", "insert", "drop", "double"])
    edits = st.lists(st.tuples(places, st.integers(1, 64), put_in, kinds), min_size=1, max_size=3)
    encoded = [data.decode("utf-8", "replace").encode(name) for name in ("utf-16", "utf-32")]
    return st.one_of(edits.map(changed), edits.map(changed), st.binary(max_size=64),
                     st.sampled_from([b"", *encoded, b"\xef\xbb\xbf" + data, data + data]))


def json_files(value: Any) -> st.SearchStrategy[bytes]:
    """Files that were this value as JSON."""
    changed = mutated(value).map(as_json)
    return st.one_of(changed, changed, damaged(as_json(value)))
