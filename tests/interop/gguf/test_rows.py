"""Lines of GGUF's tables by themselves."""

from __future__ import annotations

import pytest

from gpt.errors import UserError
from gpt.interop.gguf.rows import Rope, Sliding
from gpt.interop.options import Options
from tests.tiny import tiny_config

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


def read(row, **options):
    found = Options({name.replace("__", "."): value for name, value in options.items()}, "a.gguf")
    return row.read(found, {"n_layer": 6, "head_dim": 8, "block_size": 64, "window": 5}), found


@pytest.mark.parametrize(("told", "pattern"), [
    (None, "SSSF"), (2, "SF"), (1, "F"), (0, "S"), ([True, False, True, True, False, False],
                                                    "SFSSFF"), ([0, 1, 1, 0, 1, 1, 1], "FSSFSS")])
def test_layers_slide_that_the_file_names_or_else_those_of_the_architecture(told, pattern):
    options = {WINDOW: 7} | ({} if told is None else {PATTERN: told})
    found, left = read(Sliding("SSSF"), **options)
    assert found == ({"window": 7, "window_pattern": pattern} if "S" in pattern else {})
    assert not left.left_over()


@pytest.mark.parametrize("told", [[True] * 5, "SSF", [1, "x", 0, 0, 0, 0], -1, 1 << 20])
def test_a_pattern_that_does_not_say_it_of_each_layer_is_refused(told):
    with pytest.raises(UserError, match=r"a\.gguf: attention\.sliding_window_pattern=.* must say "
                                        "of each of 6 layers whether it slides"):
        read(Sliding("SSSF"), **{WINDOW: 7, PATTERN: told})


def test_a_window_that_llama_cpp_does_not_mind_says_nothing_by_its_pattern():
    assert read(Sliding("S", computed=False), **{WINDOW: 7, PATTERN: [True] * 6})[0] == {
        "window": 7, "window_pattern": "S"}


@pytest.mark.parametrize(("row", "absent"), [(Rope(local="own"), 10_000.0),
                                             (Rope(local="same"), 500.0)])
def test_layers_that_slide_turn_by_their_own_base_or_by_that_of_all(row, absent):
    assert read(row, **{"rope.freq_base": 500.0})[0]["local_rope_base"] == absent
    assert read(row, **{"rope.freq_base": 500.0,
                        "rope.freq_base_swa": 9.0})[0]["local_rope_base"] == 9.0
    assert "local_rope_base" not in read(Rope(), **{"rope.freq_base": 500.0})[0]
    written = row.write(tiny_config(window=5, local_rope_base=9.0))
    assert written.get("rope.freq_base_swa") == (9.0 if row.local == "own" else None)
