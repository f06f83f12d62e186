"""Requests in, text out: pieces, stop texts, many at once, from Python."""

from __future__ import annotations

import pytest
import torch

from gpt.errors import UserError
from gpt.generation import SamplingConfig
from gpt.generation.drafts import DraftModel, PromptLookup
from gpt.language_model import LanguageModel, load
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, tiny_gpt

TOKENIZER = build_tokenizer("byte")


def model_of(seed=0, **changes):
    """Whose likeliest bytes are letters, so that texts are readable."""
    model = tiny_gpt(seed=seed, vocab_size=TOKENIZER.vocab_size, block_size=64, **changes)
    return model


@pytest.fixture
def lm():
    return LanguageModel(model_of(), TOKENIZER, CPU)


def pieces_of(lm, *settings, prompt="a"):
    asked = [lm.request(lm.prompt_tokens(prompt), SamplingConfig(**each)) for each in settings]
    found = [[] for _ in asked]
    for index, piece in lm.write(asked):
        found[index].append(piece)
    return found


def test_a_list_of_prompts_gives_a_list_of_what_each_gives_alone(lm):
    prompts = ["a", "bcd", "", "a", "é" * 9]
    for settings in ({"temperature": 0}, {"seed": 3}):
        alone = [lm.generate(prompt, max_new_tokens=12, **settings) for prompt in prompts]
        assert lm.generate(prompts, max_new_tokens=12, **settings) == alone
        assert len(set(alone)) == 4
    assert lm.generate([]) == []


def test_what_is_streamed_is_what_is_generated(lm):
    for seed in range(20):
        whole = lm.generate("a", max_new_tokens=30, seed=seed)
        pieces = list(lm.stream("a", max_new_tokens=30, seed=seed))
        assert "".join(pieces) == whole and "" not in pieces


def test_a_stop_text_ends_its_own_text_alone_and_frees_its_row(lm):
    settings = {"seed": 1, "max_new_tokens": 40, "banned_tokens": [TOKENIZER.end_of_text]}
    free = lm.generate("a", **settings)
    stop = free[8:10]
    ended, other = pieces_of(lm, settings | {"stop": [stop]}, settings)
    assert "".join(piece.text for piece in ended) == free[:free.index(stop)]
    assert "".join(piece.text for piece in other) == free
    assert ended[-1].end == "stop" and other[-1].end == "length" and len(ended) < len(other)


def test_stop_texts_count_from_the_least_number_of_tokens_on(lm):
    free = lm.generate("a", max_new_tokens=40, seed=1)
    later = lm.generate("a", max_new_tokens=40, seed=1, stop=[free[0]], min_new_tokens=1)
    assert later.startswith(free[0]) and free[0] not in later[1:]
    assert lm.generate("a", max_new_tokens=40, seed=1, stop=[free[0]]) == ""


def test_with_drafts_texts_end_where_they_do_without(lm):
    free = lm.generate("abab", max_new_tokens=40, temperature=0)
    for draft in (None, PromptLookup(), DraftModel(model_of(), CPU)):
        lm.draft = draft
        assert lm.generate("abab", max_new_tokens=40, temperature=0) == free
        for place in range(3, 9):
            stop = free[place]
            assert lm.generate("abab", max_new_tokens=40, temperature=0, stop=stop) == (
                free[:free.index(stop)])


def test_control_tokens_and_padding_are_never_written():
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size + 7)
    lm = LanguageModel(model, TOKENIZER, CPU)
    assert lm.never == list(range(TOKENIZER.vocab_size, TOKENIZER.vocab_size + 7))
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.vocab_size:] *= 100
    made = pieces_of(lm, {"temperature": 0, "max_new_tokens": 20})[0]
    assert all(piece.new.token < TOKENIZER.vocab_size for piece in made)


def test_beams_are_written_among_others(lm):
    found = pieces_of(lm, {"temperature": 0, "max_new_tokens": 6},
                      {"beams": 3, "max_new_tokens": 6}, {"seed": 2, "max_new_tokens": 6})
    assert [len(pieces) for pieces in found] == [6, 6, 6]
    alone = pieces_of(lm, {"temperature": 0, "max_new_tokens": 6})[0]
    assert [piece.text for piece in found[0]] == [piece.text for piece in alone]
    ranks = [sum(piece.new.logprob for piece in pieces) for pieces in found[:2]]
    assert ranks[1] >= ranks[0]


def test_answers_come_with_whether_they_ended(lm):
    [pieces] = pieces_of(lm, {"temperature": 0, "max_new_tokens": 5})
    text = "".join(piece.text for piece in pieces)
    assert lm.answers([lm.prompt_tokens("a"), lm.prompt_tokens("b")], [5, 2])[0] == (text, False)
    with torch.no_grad():  # end-of-text scores as the third token does, and a little more
        lm.model.lm_head.weight[TOKENIZER.end_of_text] = (
            1.01 * lm.model.lm_head.weight[pieces[2].new.token])
    assert lm.answers([lm.prompt_tokens("a")], [9])[0][1]


def test_a_draft_with_another_tokenizer_is_refused(tmp_path):
    from gpt import checkpoint
    for name, spec in (("large", "byte"), ("small", "char"), ("twin", "byte")):
        tokenizer = build_tokenizer(spec, ["abc"])
        checkpoint.save_model(tmp_path / name, tiny_gpt(vocab_size=tokenizer.vocab_size),
                              tokenizer, "random weights")
    with pytest.raises(UserError, match="has another tokenizer"):
        load(str(tmp_path / "large"), "cpu", draft=str(tmp_path / "small"))
    plain, *drafted = (load(str(tmp_path / "large"), "cpu", draft=draft).generate(
        "ab", max_new_tokens=20, seed=0) for draft in (None, str(tmp_path / "twin"), "prompt"))
    assert drafted == [plain, plain]
