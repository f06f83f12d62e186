"""YAML without its surprises: numbers, text, duplicate keys, tags and aliases."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.configuration.strict_yaml import load_file, load_text, parse_scalar
from gpt.errors import UserError

SEEDED = settings(max_examples=120, derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(("word", "value"), [
    ("1e-4", 1e-4), ("1E5", 1e5), ("3", 3), ("-3", -3), ("+3", 3), ("0.5", 0.5), (".5", 0.5),
    ("5.", 5.0), ("012", 12), ("1_000", 1000), ("1_000.5", 1000.5), (".inf", math.inf),
    ("-.inf", -math.inf)])
def test_words_that_look_like_numbers_are_those_numbers(word, value):
    found = load_text(f"a: {word}", "f").values["a"]
    assert found == value and type(found) is type(value)
    assert parse_scalar(word) == value


def test_nan_is_a_number_and_plain_yaml_would_have_misread_the_others():
    assert math.isnan(parse_scalar(".nan"))
    assert yaml.safe_load("1e-4") == "1e-4"
    assert yaml.safe_load("012") == 10


@pytest.mark.parametrize("word", [
    "on", "off", "yes", "no", "y", "2020-01-01", "0x10", "1:30", "1e", "e4", "--", "1 2", "1.2.3",
    "True!", "nullable", "="])
def test_other_words_stay_text(word):
    assert load_text(f"a: {word}", "f").values == {"a": word}
    assert parse_scalar(word) == word


def test_plain_yaml_would_have_turned_some_of_those_words_into_something_else():
    assert yaml.safe_load("no") is False and yaml.safe_load("1:30") == 90


@pytest.mark.parametrize(("word", "value"), [
    ("true", True), ("False", False), ("null", None), ("~", None), ("", None)])
def test_true_false_and_null_have_their_usual_spellings(word, value):
    assert load_text(f"a: {word}", "f").values["a"] is value


@pytest.mark.parametrize("quoted", ["'1e-4'", '"1e-4"', "|-\n  1e-4", ">-\n  1e-4"])
def test_quoted_and_block_values_are_text(quoted):
    assert load_text(f"a: {quoted}", "f").values == {"a": "1e-4"}


@pytest.mark.parametrize("word", ["1_", "1__0", "1_.5", "9" * 5000])
def test_words_that_only_resemble_numbers_are_text_or_refused_in_one_line(word):
    try:
        assert load_text(f"a: {word}", "f").values == {"a": word}
    except UserError as error:
        assert "f, line 1" in str(error)


JSON_TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10**20, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3))


@SEEDED
@given(JSON_VALUES)
def test_values_written_as_json_come_back(value):
    assert load_text(json.dumps(value, ensure_ascii=False), "f").values == value


@SEEDED
@given(st.text(st.sampled_from("ab:- \n[]{}#&*!|>'\",?%@~1.e\t\0\u2028é"), max_size=24))
def test_any_text_gives_plain_values_or_one_error(text):
    try:
        values = load_text(text, "f").values
    except UserError as error:
        assert "f" in str(error)
    else:
        assert values is None or isinstance(values, (dict, list, str, int, float))


def test_a_key_given_twice_is_refused_at_the_second_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  steps: 1\n  lr: 2\n  steps: 3\n")
    with pytest.raises(UserError, match=r"run\.yaml, line 4: the key 'steps' stands twice; remove"):
        load_file(path)
    assert yaml.safe_load(path.read_text()) == {"train": {"steps": 3, "lr": 2}}


def test_the_same_key_may_stand_in_two_sections():
    values = load_text("a:\n  every: 1\nb:\n  every: 2\n", "f").values
    assert values == {"a": {"every": 1}, "b": {"every": 2}}


@pytest.mark.parametrize("tagged", [
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/name:os.system", "!!python/module:os", "!!str 5", "!!int '5'", "! 5", "!own {{a: 1}}",
    "[1, !!float 2]", "&a 5"])
def test_tags_and_anchors_are_refused_with_file_and_line_and_build_nothing(tagged, tmp_path):
    canary = tmp_path / "canary"
    text = "first: 1\nsecond: " + tagged.format(canary=canary)
    with pytest.raises(UserError, match=r"run\.yaml, line 2: (the YAML tag \S+ is|YAML anchors)"):
        load_text(text, "run.yaml")
    assert not canary.exists()


def test_the_canary_is_one_that_an_unsafe_loader_would_run(tmp_path):
    canary = tmp_path / "canary"
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {canary}']")
    assert canary.exists()


def test_a_refused_tag_is_reported_once_and_not_as_broken_yaml():
    with pytest.raises(UserError) as caught:
        load_text("a: !!int 5", "run.yaml")
    assert str(caught.value) == ("run.yaml, line 1: the YAML tag tag:yaml.org,2002:int is not "
                                 "accepted; write a plain value")


def test_an_alias_bomb_is_refused_before_it_grows():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(UserError, match="line 1: YAML anchors and aliases are not accepted; write"):
        load_text("\n".join(levels), "bomb.yaml")


@pytest.mark.parametrize(("text", "line"), [
    ("a: 1\nb: [1, 2", 2), ("a: 1\n b: 2", 2), ("a: 'x", 1), ("a: 1\n---\nb: 2", 2),
    ("a:\n\t- 1", 2), ("a: *nowhere", 1)])
def test_broken_yaml_names_file_and_line(text, line):
    with pytest.raises(UserError, match=rf"run\.yaml, line {line}"):
        load_text(text, "run.yaml")


def test_nesting_of_any_depth_is_one_error():
    assert load_text("[" * 50 + "]" * 50, "f").values
    with pytest.raises(UserError, match=r"f(, line 1)?: not valid YAML: "):
        load_text("[" * 600 + "]" * 600, "f")


def test_control_characters_are_refused():
    with pytest.raises(UserError, match=r"f: not valid YAML: unacceptable character #x0000"):
        load_text("a: \0", "f")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the configuration .*no\.yaml: No such file"):
        load_file(tmp_path / "no.yaml")
    with pytest.raises(UserError, match=r"cannot read the configuration .*: Is a directory"):
        load_file(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: it is not UTF-8 text"):
        load_file(latin)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_file(path).values == {"a": 1}


def test_every_value_knows_its_line():
    document = load_text("train:\n  steps: 5\n\n  words: [a,\n    b]\n# note\nrun:\n  name: x", "f")
    assert {"train": 1, "train.steps": 2, "train.words": 4, "train.words.1": 5,
            "run": 7, "run.name": 8}.items() <= document.lines.items()


def test_an_empty_document_has_no_values():
    assert load_text("# nothing\n", "f").values is None


@pytest.mark.parametrize("text", ['a: "\\ud800"', 'a: "x\\0"', '"\\udfff": 1',
                                  'a: ["\\uD83D\\uDE00"]'])
def test_what_is_no_character_is_refused_with_its_line(text):
    with pytest.raises(UserError, match=r"f, line 1: \\u\w{4} is no character; take it out"):
        load_text(text, "f")


def test_bytes_of_a_files_name_are_characters():
    assert load_text('a: "\\udcff"', "f").values == {"a": "\udcff"}  # as config.yaml has it


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "{[a]: 1}", "? {a: 1}\n: 2", "[a]: 1"])
def test_a_key_is_one_word(text):
    with pytest.raises(UserError, match="f, line 1: a key is one word, not a list or a section"):
        load_text(text, "f")


def test_keys_have_an_end(tmp_path):
    assert load_text(f"{'k' * 1000}: {{b: 1}}", "f").values
    with pytest.raises(UserError, match="f, line 1: not valid YAML: a key is too long"):
        load_text(f"? {'k' * 3000}\n: [1, 2, 3]", "f")


def test_a_file_that_is_too_long_for_a_configuration_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n" + "#" * (1 << 20))
    with pytest.raises(UserError, match=r"a\.yaml is longer than 1 MiB, and no configuration"):
        load_file(path)
    path.write_text("a: 1\n" + "#" * 1000)
    assert load_file(path).values == {"a": 1}


def test_values_without_end_are_no_configuration():
    with pytest.raises(UserError, match="f: more than 40,000 values are no configuration"):
        load_text("[" + "1," * 40_000 + "]", "f")
    assert load_text("[" + "1," * 400 + "]", "f").values == [1] * 400
