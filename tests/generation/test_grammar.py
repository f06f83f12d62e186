"""Text that has to follow a schema or an expression follows it, with every kind of tokenizer."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from gpt.configuration import SamplingConfig, sampling_config
from gpt.errors import UserError
from gpt.generation import grammars
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.finetuning.conversations import with_controls
from tests.tiny import CPU, tiny_gpt

TEXT = 'a text to train on: {"name": "value", "number": 12, "list": [1, 2, 3]} in ünicode ' * 9
SCHEMA = json.dumps({
    "type": "object", "properties": {"name": {"enum": ["Ada", "Grace"]},
                                     "age": {"type": "integer", "maximum": 999, "minimum": 0}},
    "required": ["name", "age"], "additionalProperties": False})
PATTERN = "(to|in) (a|text){1,3}[0-9]{2,4}"


@pytest.fixture(scope="module", params=["byte", "char", "bpe:300"])
def lm(request):
    tokenizer = build_tokenizer(request.param, [TEXT])
    return LanguageModel(tiny_gpt(vocab_size=tokenizer.vocab_size + 3, block_size=256), tokenizer,
                         CPU)


def written(lm, prompt="a text", **settings):
    settings = {"max_new_tokens": 200, "seed": 0, **settings}
    asked = lm.request(lm.prompt_tokens(prompt), sampling_config(**settings))
    pieces = [piece for _, piece in lm.write([asked])]
    return "".join(piece.text for piece in pieces), pieces[-1].end


def test_json_of_a_schema_is_what_comes(lm):
    for seed in range(5):  # an untrained model, which would write anything
        text, end = written(lm, json_schema=SCHEMA, seed=seed, temperature=0.7)
        found = json.loads(text)
        assert end == "stop" and set(found) == {"name", "age"} and isinstance(found["age"], int)
        assert found["name"] in ("Ada", "Grace")
    free, _ = written(lm, seed=0)
    assert not free.startswith("{")


def test_an_expression_is_followed_to_its_end(lm):
    for seed in range(10):
        text, end = written(lm, regex=PATTERN, seed=seed, max_new_tokens=60)
        assert end == "stop" and re.fullmatch(PATTERN, text), text
    assert written(lm, regex="abc", temperature=0) == ("abc", "stop")


def test_each_request_has_a_grammar_of_its_own(lm):
    asked = [lm.request(lm.prompt_tokens("a"), sampling_config(temperature=0, **settings))
             for settings in ({"regex": "12"}, {}, {"regex": "3+", "max_new_tokens": 4},
                              {"regex": "12"})]
    texts = [""] * 4
    for index, piece in lm.write(asked):
        texts[index] += piece.text
    assert texts[0] == texts[3] == "12" and texts[2].strip("3") == "" != texts[2]


@pytest.mark.parametrize(("settings", "message"), [
    ({"regex": "("}, "regex: "), ({"json_schema": '{"type": "nothing"}'}, "json_schema: ")])
def test_what_cannot_be_followed_is_refused(lm, settings, message):
    with pytest.raises(UserError, match=message):
        written(lm, **settings)


def test_a_forced_token_that_breaks_the_grammar_is_named(lm):
    token = lm.tokenizer.encode("n")[0]
    with pytest.raises(UserError, match=f"does not allow token {token}, which forced_tokens"):
        written(lm, regex="[0-9]+", forced_tokens=[token])


def test_allowed_tokens_are_those_that_can_begin_a_match():
    tokenizer = build_tokenizer("byte")
    grammar = grammars(tokenizer)(SamplingConfig(regex="[a-c]x"))
    assert grammar.allowed().nonzero().flatten().tolist() == [97, 98, 99]
    grammar.accept(98)
    assert grammar.allowed().nonzero().flatten().tolist() == [120]
    grammar.accept(120)
    assert grammar.allowed().nonzero().flatten().tolist() == [tokenizer.end_of_text]
    assert grammars(tokenizer)(SamplingConfig()) is None


def test_without_the_package_the_error_says_what_to_install(lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = LanguageModel(lm.model, lm.tokenizer, CPU)
    with pytest.raises(UserError, match="pip install llguidance"):
        written(fresh, regex="a")
    assert written(fresh, max_new_tokens=2)[1] == "length"


def test_control_tokens_are_no_text_to_a_grammar():
    tokenizer = build_tokenizer("byte")
    grammar = grammars(tokenizer)(SamplingConfig(regex=".*"))
    allowed = grammar.allowed()
    assert allowed.dtype == torch.bool and len(allowed) == tokenizer.vocab_size
    assert set(allowed.nonzero().flatten().tolist()) - {tokenizer.end_of_text} <= set(range(256))


def test_a_chats_stop_token_ends_a_text_as_the_end_of_text_does():
    tokenizer = build_tokenizer("byte")
    tokenizer.specials["<|im_end|>"] = 258
    tokenizer.__dict__.pop("_ids", None)
    tokenizer.__dict__.pop("vocab_size", None)
    other = tokenizer.stopping_at(258)
    grammar = grammars(other)(SamplingConfig(regex="[a-z]+"))
    grammar.accept(97)
    assert {*other.stop_tokens} <= {*grammar.allowed().nonzero().flatten().tolist()}


def test_a_tokenizer_is_prepared_once_for_all_grammars(monkeypatch):
    import llguidance
    made, original = [], llguidance.LLTokenizer
    monkeypatch.setattr(llguidance, "LLTokenizer", lambda *args, **kwargs: (
        made.append(args), original(*args, **kwargs))[1])
    of = grammars(build_tokenizer("byte"))
    assert [len(of(SamplingConfig(regex=text)).allowed()) for text in ("a", "b")] == [257, 257]
    assert len(made) == 1


def test_an_error_of_a_grammar_is_one_line():
    with pytest.raises(UserError) as error:
        grammars(build_tokenizer("byte"))(SamplingConfig(regex="a(\nb"))
    assert len(str(error.value).splitlines()) == 1


def test_a_control_token_is_not_the_text_that_spells_its_name():
    tokenizer = with_controls()
    grammar = grammars(tokenizer)(SamplingConfig(regex="<\\|im_start\\|>.*"))
    assert grammar.allowed().nonzero().flatten().tolist() == [*b"<"]


def test_of_several_forced_tokens_the_one_that_breaks_the_grammar_is_named():
    with pytest.raises(UserError, match="does not allow token 120, which forced_tokens"):
        grammars(build_tokenizer("byte"))(SamplingConfig(regex="[a-c]+", forced_tokens=[97, 120]))
