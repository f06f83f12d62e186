"""Beam search finds the likeliest text where its beams suffice, and transformers agrees."""

from __future__ import annotations

import itertools

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Request, beam_search
from tests.tiny import ARCHITECTURES, CPU, generate_tokens, random_tokens, tiny_gpt


def searched(model, prompt, beams, count, stops=(), never=()):
    config = SamplingConfig(beams=beams, max_new_tokens=count)
    return beam_search(model, Request(prompt, config), CPU, stops, never)


def logprob(model, prompt, made):
    """Of some tokens behind a prompt, per token."""
    return logprobs(model, prompt, [made])[0]


@torch.no_grad()
def logprobs(model, prompt, texts):
    """The same of many texts at once."""
    longest = max(map(len, texts))  # a text does not see what it is padded with
    rows = torch.tensor([[*prompt, *made, *[0] * (longest - len(made))] for made in texts])
    scores = model(rows)[:, len(prompt) - 1:-1].log_softmax(-1)
    chosen = scores.gather(2, rows[:, len(prompt):, None]).squeeze(2)
    return [float(row[:len(made)].sum() / len(made))
            for row, made in zip(chosen, texts, strict=True)]


def likeliest(model, prompt, texts):
    """Per token."""
    scores = logprobs(model, prompt, texts)
    return texts[scores.index(max(scores))]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_with_enough_beams_no_text_is_likelier(changes):
    """Six tokens, three steps: 216 texts, and as many beams as can matter."""
    model = tiny_gpt(**{**changes, "vocab_size": 6})
    for seed in range(4):
        prompt = [seed, 4, 2]
        best = likeliest(model, prompt, list(itertools.product(range(6), repeat=3)))
        found = searched(model, prompt, 36, 3)
        assert [new.token for new in found] == list(best)
        assert sum(new.logprob for new in found) / 3 == pytest.approx(
            logprob(model, prompt, best), abs=1e-4)
        assert [new.end for new in found] == [None, None, "length"]


def test_texts_that_stop_compete_by_their_log_probability_per_token():
    """Every text of up to four tokens that ends in a stop token, or has four."""
    model, differing = tiny_gpt(vocab_size=6), 0
    for first in range(6):
        prompt = [first, 2]
        texts = [made for n in range(1, 5) for made in itertools.product(range(6), repeat=n)
                 if 5 not in made[:-1] and (made[-1] == 5 or n == 4)]
        best = likeliest(model, prompt, texts)
        found = [new.token for new in searched(model, prompt, 216, 4, stops=[5])]
        assert found == list(best)
        greedy = [new.token for new in generate_tokens(
            model, prompt, SamplingConfig(temperature=0, max_new_tokens=4), stop_tokens=[5])]
        differing += found != greedy
    assert differing > 0


def test_more_beams_find_likelier_texts_than_greed():
    model, better = tiny_gpt(), {2: 0, 8: 0}
    for first in range(20):
        greedy = logprob(model, [first], [new.token for new in generate_tokens(
            model, [first], SamplingConfig(temperature=0, max_new_tokens=8))])
        for beams in better:
            found = [new.token for new in searched(model, [first], beams, 8)]
            better[beams] += logprob(model, [first], found) > greedy + 1e-6
    assert 5 < better[2] <= better[8]


@pytest.mark.parametrize(("weight", "prompt", "message"), [
    (1.0, [1] * 33, "33 tokens, the model reads 32"), (float("nan"), [1], "not numbers")])
def test_beams_refuse_what_greedy_generation_does(weight, prompt, message):
    model = tiny_gpt()
    with torch.no_grad():
        model.final_norm.weight.fill_(weight)
    with pytest.raises(UserError, match=message):
        searched(model, prompt, 2, 4)


def test_ids_that_are_never_chosen_are_in_no_beam():
    model = tiny_gpt()
    free = [new.token for new in searched(model, [3], 3, 6)]
    found = [new.token for new in searched(model, [3], 3, 6, never=free)]
    assert len(found) == 6 and not {*free} & {*found}


def test_beams_that_can_only_stop_do():
    [new] = searched(tiny_gpt(), [3], 2, 6, stops=[60], never=range(60))
    assert (new.token, new.end) == (60, "stop")


def test_beams_end_where_the_context_does():
    model = tiny_gpt()
    made = searched(model, [1] * 30, 3, 10)
    assert len(made) == 3 and made[-1].end == "context"
    assert searched(model, [1], 3, 0) == []


def test_transformers_finds_the_same_texts(tmp_path):
    from transformers import AutoModelForCausalLM

    from gpt.interop.model_card import about_checkpoint
    from gpt.interop.writing import export_huggingface
    from gpt.tokenizer import build_tokenizer
    tokenizer = build_tokenizer("byte")
    model = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=64)
    from gpt.runs import checkpoint
    checkpoint.save_model(tmp_path / "ours", model, tokenizer, "random weights")
    export_huggingface(model, tokenizer, tmp_path / "hf", about_checkpoint(tmp_path / "ours", None))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    stop = tokenizer.end_of_text
    for number in range(20):
        prompt = torch.randint(0, 256, (1, 5), generator=torch.Generator().manual_seed(number))
        made = theirs.generate(prompt, num_beams=4, do_sample=False, max_new_tokens=12,
                               eos_token_id=stop, pad_token_id=stop, length_penalty=1.0,
                               attention_mask=torch.ones_like(prompt))[0, 5:].tolist()
        found = [new.token for new in searched(model, prompt[0].tolist(), 4, 12, stops=[stop])]
        assert found == made


@torch.no_grad()
def defined(model, request, stops=(), never=()):
    """The definition, with every text read again for every token: (tokens, log-probability)."""
    def rank(text):
        return text[1] / len(text[0])

    beams, going, ended = request.config.beams, [((), 0.0)], []
    for _ in range(request.config.max_new_tokens):
        found = []
        for made, score in going:
            read = torch.tensor([[*request.prompt, *made]])
            prompts = (torch.arange(read.size(1)) < request.prefix).unsqueeze(0)
            logprobs = model(read, prompts=prompts)[0, -1].log_softmax(-1).tolist()
            found += [((*made, token), score + logprob) for token, logprob in enumerate(logprobs)
                      if token not in never]
        found.sort(key=lambda text: text[1], reverse=True)
        ended += [text for text in found[:beams] if text[0][-1] in stops]
        ended = sorted(ended, key=rank, reverse=True)[:beams]
        going = [text for text in found if text[0][-1] not in stops][:beams]
        if not going or (len(ended) == beams and rank(going[0]) <= rank(ended[-1])):
            break
    else:
        ended += going
    return max(ended, key=rank)


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_beams_with_stop_tokens_find_what_their_definition_does(beams):
    model, lengths = tiny_gpt(vocab_size=9), set()
    for number in range(25):
        request = Request(random_tokens(4, vocab_size=9, seed=number).tolist(),
                          SamplingConfig(beams=beams, max_new_tokens=9), prefix=number % 5)
        found = beam_search(model, request, CPU, [7, 8], [5])
        made, score = defined(model, request, {7, 8}, {5})
        assert tuple(new.token for new in found) == made
        assert sum(new.logprob for new in found) == pytest.approx(score, abs=1e-4)
        assert [new.end for new in found[:-1]] == [None] * (len(made) - 1)
        assert found[-1].end == ("stop" if made[-1] in (7, 8) else "length")
        lengths.add(len(made))
    assert len(lengths) > 2
