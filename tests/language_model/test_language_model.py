"""What a model with its tokenizer does beyond generating: scores, settings, drafts, beams."""

from __future__ import annotations

import pytest
import torch

from gpt import language_model
from gpt.configuration import SamplingConfig, sampling_config
from gpt.errors import UserError
from gpt.generation import Request
from gpt.generation.request import Continuation
from gpt.language_model import LanguageModel, load
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.finetuning.conversations import CONTROLS, with_controls
from tests.tiny import CPU, tiny_gpt

pytestmark = pytest.mark.auto


def lm_of(tokenizer, **changes):
    return LanguageModel(tiny_gpt(vocab_size=tokenizer.vocab_size, **changes), tokenizer, CPU)


@pytest.mark.parametrize("begin", [None, 257])
@torch.no_grad()
def test_a_text_longer_than_the_context_is_scored_in_windows(begin, monkeypatch):
    monkeypatch.setattr(language_model, "SCORED", 5)
    tokenizer = with_controls()
    tokenizer.boundaries = tokenizer.boundaries._replace(begin_of_text=begin)
    lm, tokens = lm_of(tokenizer, block_size=16), [*b"forty letters are two and a half windows"]
    read, expected = [begin or tokenizer.end_of_text, *tokens[:-1]], []
    for start in range(0, len(tokens), 16):
        logprobs = lm.model(torch.tensor([read[start:start + 16]]))[0].log_softmax(-1)
        expected += [float(row[token]) for row, token in
                     zip(logprobs, tokens[start:start + 16], strict=True)]
    assert lm.score(bytes(tokens).decode()) == pytest.approx(expected, abs=1e-5)


def test_control_tokens_that_end_nothing_are_never_chosen():
    tokenizer = with_controls().stopping_at(258)
    assert lm_of(tokenizer).never == [257, 259, 260, 261]


@pytest.mark.parametrize(("likely", "made"), [(256, [256]), (258, None)])
@torch.no_grad()
def test_beams_end_at_stop_tokens_and_never_choose_control_tokens(likely, made):
    lm = lm_of(with_controls(), bias=True)
    final = lm.model.hidden(torch.tensor([[97]]))[0, -1]
    lm.model.lm_head.weight[likely] = 100 * final / final.norm()
    found = [piece.new.token for _, piece in lm.write([
        lm.request([97], SamplingConfig(beams=2, max_new_tokens=4))])]
    assert found == made or (made is None and len(found) == 4 and max(found) < 256)


def test_a_writer_refuses_what_its_rows_have_no_room_for():
    lm = lm_of(build_tokenizer("byte"))
    writer = lm.writer(2, max_tokens=5)
    writer.submit(lm.request([97] * 5, SamplingConfig()))
    with pytest.raises(UserError, match="6 tokens, the model reads 5"):
        writer.submit(lm.request([97] * 6, SamplingConfig()))


@pytest.mark.parametrize(("settings", "message"), [
    ({"logit_bias": {3: 1e9}}, "logit_bias: "), ({"regex": "a", "json_schema": "{}"}, "give json_"),
    ({"seed": 2**63}, "seed: "), ({"top_k": 1.5}, "top_k: ")])
def test_an_error_begins_with_the_settings_name_or_says_what_does_not_go_together(settings,
                                                                                 message):
    with pytest.raises(UserError) as error:
        sampling_config(**settings)
    assert str(error.value).startswith(message)


def save(path, tokenizer, seed=0, padding=0):
    model = tiny_gpt(seed=seed, vocab_size=tokenizer.vocab_size + padding)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.vocab_size:] *= 100
    checkpoint.save_model(path, model, tokenizer, "random weights")
    return str(path)


def test_a_draft_whose_control_tokens_have_other_names_is_refused(tmp_path):
    large = save(tmp_path / "large", with_controls())
    other = save(tmp_path / "other", with_controls([*CONTROLS[:-1], "<|other|>"]))
    with pytest.raises(UserError, match="has another tokenizer"):
        load(large, "cpu", draft=other)


def test_a_draft_model_never_guesses_what_is_never_chosen(tmp_path):
    large = save(tmp_path / "large", build_tokenizer("byte"), padding=7)
    lm = load(large, "cpu", draft=large)
    for seed in range(5):
        asked = Continuation(seed, Request([97], SamplingConfig(seed=seed)), 32)
        guesses = lm.draft.propose(asked, 4)
        assert len(guesses) == 4 and max(guesses) < 257


@pytest.fixture
def on_bfloat16(tmp_path, monkeypatch):
    """A checkpoint, on a processor that computes in bfloat16."""
    tokenizer = build_tokenizer("byte")
    checkpoint.save_model(tmp_path / "model", tiny_gpt(vocab_size=257), tokenizer, "a test")
    monkeypatch.setattr("gpt.machine.device.computes_in_bfloat16", lambda device: True)
    return str(tmp_path / "model")


TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_scores_are_those_of_float32_whatever_auto_means_here(dtype, on_bfloat16, monkeypatch):
    there = load(on_bfloat16, device="cpu", dtype=dtype)
    assert there.machine.dtype == torch.bfloat16
    scores = there.score(TEXT)
    monkeypatch.setattr("gpt.machine.device.computes_in_bfloat16", lambda device: False)
    assert scores == load(on_bfloat16, device="cpu", dtype=dtype).score(TEXT)
    rounded = load(on_bfloat16, device="cpu", dtype="bfloat16").score(TEXT)
    assert scores != rounded and scores == pytest.approx(rounded, abs=0.1)


def test_a_model_that_was_changed_is_scored_as_it_is(on_bfloat16):
    lm = load(on_bfloat16, device="cpu")
    before = lm.score(TEXT)
    with torch.no_grad():
        lm.model.blocks[0].feedforward.down_proj.weight.mul_(2)
    after = lm.score(TEXT)
    assert after != pytest.approx(before, abs=1e-3)
    copy = LanguageModel(lm.model.float(), lm.tokenizer, lm.machine.measuring())
    assert after == copy.score(TEXT)
