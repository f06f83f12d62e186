"""Characters whose UTF-8 has a byte that a vocabulary lacks."""

from __future__ import annotations

import pytest

from gpt.tokenizer.unwritable import characters_with


@pytest.mark.parametrize("lacking", [{0x04}, {0xA7}, {0x80, 0xBF}, {0xC3}, {0xE4, 0x9F}, {0xF0},
                                     set(range(0x80, 0x100))])
def test_every_character_with_such_a_byte_is_found_and_no_other(lacking):
    pattern = characters_with(lacking)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000][::31]
    assert [c for c in characters if pattern.match(c)] == [
        c for c in characters if lacking & set(c.encode())]


def test_bytes_that_no_character_has_are_no_loss():
    assert characters_with({0xC0, 0xC1, 0xF5, 0xFF}) is None and characters_with(()) is None
