"""Requests in, text out: pieces, stop texts, many at once, from Python."""

from __future__ import annotations

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import DraftModel, Generation, PromptLookup
from gpt.generation import pieces_of as pieces_of_made
from gpt.language_model import LanguageModel, load
from gpt.tokenizer import build_tokenizer
from tests.finetuning.conversations import with_controls
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
    from gpt.runs import checkpoint
    for name, spec in (("large", "byte"), ("small", "char"), ("twin", "byte")):
        tokenizer = build_tokenizer(spec, ["abc"])
        checkpoint.save_model(tmp_path / name, tiny_gpt(vocab_size=tokenizer.vocab_size),
                              tokenizer, "random weights")
    with pytest.raises(UserError, match="has another tokenizer"):
        load(str(tmp_path / "large"), "cpu", draft=str(tmp_path / "small"))
    plain, *drafted = (load(str(tmp_path / "large"), "cpu", draft=draft).generate(
        "ab", max_new_tokens=20, seed=0) for draft in (None, str(tmp_path / "twin"), "prompt"))
    assert drafted == [plain, plain]


@pytest.mark.parametrize("stop", [256, 258])
def test_the_stop_token_that_ends_a_text_is_not_part_of_it(stop):
    tokenizer = with_controls().stopping_at(258)
    lm = LanguageModel(tiny_gpt(vocab_size=tokenizer.vocab_size), tokenizer, CPU)
    [pieces] = pieces_of(lm, {"forced_tokens": [*b"ab", stop]})
    assert [(piece.text, piece.new.token, piece.end) for piece in pieces] == [
        ("a", 97, None), ("b", 98, None), ("", stop, "stop")]


@pytest.mark.parametrize(("forced", "stop", "text"), [
    (b"aEN", ["END"], "aEN"), (b"a\xe6\x97", [], "a\ufffd")])
def test_what_waited_for_more_is_shown_with_the_last_token(lm, forced, stop, text):
    [pieces] = pieces_of(lm, {"forced_tokens": [*forced], "max_new_tokens": 3, "stop": stop})
    assert [piece.text for piece in pieces] == ["a", "", text[1:]] and pieces[-1].end == "length"


def request_of(lm, **settings):
    return lm.request(lm.prompt_tokens("a"), SamplingConfig(**settings))


def test_after_a_stop_text_nothing_is_left_to_do(lm):
    writer = lm.writer(1)
    writer.submit(request_of(lm, forced_tokens=[*b"abc"], stop=["b"]))
    steps = 0
    while writer.busy:
        list(writer.step())
        steps += 1
    assert steps == 2


def test_a_writer_forgets_texts_that_ended_were_cancelled_or_have_no_tokens(lm):
    writer = lm.writer(1)
    for settings in ({"max_new_tokens": 0}, {"max_new_tokens": 2},
                     {"forced_tokens": [*b"abc"], "stop": ["b"]}):
        writer.submit(request_of(lm, **settings))
    writer.cancel(writer.submit(request_of(lm)))
    made = 0
    while writer.busy:
        made += len(list(writer.step()))
    assert made == 4 and not writer._texts


def test_a_cancelled_request_gives_its_row_to_the_next(lm):
    writer = lm.writer(1)
    first, second = (writer.submit(request_of(lm, max_new_tokens=3)) for _ in range(2))
    assert [number for number, _ in writer.step()] == [first]
    writer.cancel(first)
    assert [number for number, _ in writer.step()] == [second]


def test_indices_of_requests_are_not_mixed_up_with_others(lm):
    writer = lm.writer(1)
    writer.submit(request_of(lm))
    with pytest.raises(AssertionError, match="mixed up"):
        next(writer.write([request_of(lm)]))


def test_one_prompt_that_is_too_long_is_not_counted(lm):
    with pytest.raises(UserError, match=r"^the prompt has 65 tokens"):
        lm.generate("x" * 65)
    with pytest.raises(UserError, match=r"^text 1 of 2: the prompt has 65 tokens"):
        lm.generate(["x" * 65, "x"])


def test_a_text_whose_tokens_are_known_ends_at_a_stop_text():
    """A conversation by beams has one, where the model knows no end of a turn."""
    made = [Generation(token, -1.0, "length" if token == 100 else None) for token in b"abcd"]
    found = list(pieces_of_made(made, SamplingConfig(stop=["bc"]), TOKENIZER))
    assert [(piece.text, piece.end) for piece in found] == [("a", None), ("", None), ("", "stop")]
