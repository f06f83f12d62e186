"""Which names are held out: by a hash, whatever other names there are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.shards import held_out_names, is_held_out

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)
NAMES = [f"file-{i}.txt" for i in range(400)]


@SEEDED
@given(st.sets(st.text(max_size=5), min_size=1), st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_both_sides_get_something_whenever_there_are_two_names(names, fraction, seed):
    held_out = held_out_names(names, fraction, seed)
    assert held_out < names
    assert bool(held_out) == (len(names) > 1)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_about_the_asked_share_of_names_is_held_out(fraction):
    """Of 400 names within 5 standard deviations of a binomial draw."""
    expected, deviation = 400 * fraction, (400 * fraction * (1 - fraction)) ** 0.5
    assert abs(len(held_out_names(NAMES, fraction, seed=1)) - expected) < 5 * deviation


def test_adding_names_moves_none_of_the_others():
    few = held_out_names(NAMES[:100], 0.2, seed=1)
    assert few == held_out_names(reversed(NAMES), 0.2, seed=1) & set(NAMES[:100])


def test_another_seed_holds_out_other_names_and_a_larger_share_holds_out_more():
    held_out = held_out_names(NAMES, 0.2, seed=1)
    assert held_out != held_out_names(NAMES, 0.2, seed=2)
    assert held_out < held_out_names(NAMES, 0.4, seed=1)


def test_a_name_that_is_not_unicode_has_a_place_and_no_names_have_none():
    assert held_out_names(["a\udcff", "b"], 0.5, 0) < {"a\udcff", "b"}
    assert held_out_names([], 0.5, 0) == set()


def test_one_name_alone_is_decided_as_among_the_others():
    held_out = held_out_names(NAMES, 0.2, seed=1)
    assert {name for name in NAMES if is_held_out(name, 0.2, 1)} == held_out


def test_the_decision_is_the_same_for_ever():
    """The quick start's figures rest on these modules being held out (and others not)."""
    held_out = {"abc.py", "contextlib.py", "html/entities.py", "mimetypes.py", "typing.py"}
    names = ["argparse.py", "ast.py", "asyncio/tasks.py", "json/decoder.py", "os.py", *held_out]
    assert {name for name in names if is_held_out(name, 0.05, 0)} == held_out
