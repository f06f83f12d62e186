"""Direct preference optimisation: the loss, its gradient, and what is counted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gpt.chat import Message
from gpt.configuration import PreferenceConfig
from gpt.finetuning import Preference, padded_batches
from gpt.finetuning.preferences import (
    Pairs,
    PreferenceObjective,
    answer_scores,
    encode_pairs,
    preference_figures,
    preference_loss,
    with_reference,
)
from gpt.model import GPT
from gpt.training.evaluate import evaluate
from gpt.training.objective import token_losses
from gpt.training.step import Step
from tests.finetuning.conversations import answers_of, chat_of
from tests.tiny import CPU, tiny_gpt
from tests.tiny_runs import accumulate_gradients, optimizer_of


def prefers(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference((Message("user", prompt),), *answers_of(chosen, rejected))


PREFERENCES = [prefers("ab", "xyz", "q"), prefers("c", "d", "efgh"), prefers("long one", "a", "b"),
               prefers("z", "yy", "yyy"), prefers("w", "vv", "uu")]


def pairs_of(model: GPT | None = None):
    pairs, _ = encode_pairs(PREFERENCES, chat_of(), 32)
    return pairs if model is None else with_reference(pairs, model, CPU)


def test_the_loss_is_the_published_formula():
    # Rafailov et al. 2023, equation 7, by hand: log-probabilities of (chosen, rejected) now are
    # (-10, -14) and were (-12, -13), so the margin is 0.1 * (2 - -1) = 0.3.
    losses, margins = preference_loss(torch.tensor([2.0]), torch.tensor([-1.0]),
                                      PreferenceConfig(beta=0.1))
    assert margins.item() == pytest.approx(0.3)
    assert losses.item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.3))))


def test_label_smoothing_counts_the_other_way_round_by_its_share():
    config = PreferenceConfig(beta=0.5, label_smoothing=0.2)
    gain = torch.tensor([2.0])
    right, wrong = (preference_loss(*each, PreferenceConfig(beta=0.5))[0]
                    for each in ((gain, -gain), (-gain, gain)))
    assert preference_loss(gain, -gain, config)[0].item() == pytest.approx(
        0.8 * right.item() + 0.2 * wrong.item())


def test_gradients_of_the_loss_are_the_published_ones():
    # Section 4: the gradient by the preferred answer's log-probability is −β σ(−margin).
    chosen, rejected = torch.tensor([1.5], requires_grad=True), torch.tensor([0.5],
                                                                             requires_grad=True)
    preference_loss(chosen, rejected, PreferenceConfig(beta=0.3))[0].sum().backward()
    weight = 0.3 / (1 + math.exp(0.3))
    assert chosen.grad.item() == pytest.approx(-weight)
    assert rejected.grad.item() == pytest.approx(weight)


def test_an_answers_score_is_the_sum_over_its_tokens_and_its_stop_alone():
    model, batch = tiny_gpt(vocab_size=262), Pairs(pairs_of()).read(np.array([0]))
    logprobs = model(batch.inputs).log_softmax(-1)
    end = 256
    expected = [sum(logprobs[row, 1 + i, token].item() for i, token in enumerate(answer))
                for row, answer in enumerate(([*b"xyz", end], [*b"q", end]))]
    torch.testing.assert_close(answer_scores(model, batch), torch.tensor(expected))


def test_before_learning_a_pair_has_no_margin_and_a_loss_of_log_two():
    model = tiny_gpt(vocab_size=262)
    objective = PreferenceObjective(PreferenceConfig())
    batch = Pairs(pairs_of(model)).read(np.arange(5))
    assert objective.summed_loss(model, batch).item() == pytest.approx(5 * math.log(2), rel=1e-5)
    figures = objective.take_figures()
    assert figures["margin"].item() == pytest.approx(0.0, abs=1e-4)
    assert objective.take_figures() == {}


def test_the_gradient_is_that_of_the_same_loss_written_plainly():
    model = tiny_gpt(vocab_size=262)
    pairs = pairs_of(tiny_gpt(seed=1, vocab_size=262))
    config = PreferenceConfig(beta=0.7)
    accumulate_gradients(model, [Pairs(pairs).read(np.arange(5))], CPU,
                         objective=PreferenceObjective(config))
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros(())
    for pair in pairs:
        gains = []
        for row, reference in zip((pair.chosen, pair.rejected), pair.reference, strict=True):
            logits = model(torch.tensor(row.tokens[None, :-1])).log_softmax(-1)
            picked = logits[0].gather(1, torch.tensor(row.tokens[1:, None])).squeeze(1)
            gains.append(picked[torch.tensor(row.learned[1:])].sum() - reference)
        total = total - torch.sigmoid(0.7 * (gains[0] - gains[1])).log() / 5
    total.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cut", [(5,), (1, 1, 1, 1, 1), (2, 3)])
def test_loss_and_gradient_do_not_depend_on_micro_batches(cut):
    pairs = Pairs(pairs_of(tiny_gpt(seed=1, vocab_size=262)))
    found = []
    for sizes in ((5,), cut):
        model, firsts = tiny_gpt(vocab_size=262), np.cumsum((0, *sizes))
        parts = [pairs.read(np.arange(a, b)) for a, b in itertools.pairwise(firsts)]
        objective = PreferenceObjective(PreferenceConfig())
        loss = accumulate_gradients(model, parts, CPU, objective=objective)
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]),
                      objective.take_figures()["preference_accuracy"].item()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    scale = found[0][1].abs().max()
    torch.testing.assert_close(found[0][1] / scale, found[1][1] / scale, rtol=0, atol=6e-6)
    assert found[0][2] == found[1][2]


def test_pairs_stay_together_when_memory_runs_out():
    batch = Pairs(pairs_of(tiny_gpt(seed=1, vocab_size=262))).read(np.arange(5))
    for pieces, sizes in ((2, [6, 4]), (4, [4, 4, 2]), (8, [2] * 5)):
        parts = batch.cut(pieces)
        assert [len(part.inputs) for part in parts] == sizes
        assert torch.cat([part.reference for part in parts]).equal(batch.reference)
        assert sum(part.tokens for part in parts) == batch.tokens


def test_learning_prefers_what_is_preferred():
    model = tiny_gpt(vocab_size=262, zero_outputs=True)
    pairs = pairs_of(model)
    config = PreferenceConfig(beta=0.5)
    before = preference_figures(model, pairs, config, CPU)
    objective = PreferenceObjective(config)
    step = Step(model.train(), optimizer_of(model, lr=3e-3), CPU, 1.0, objective=objective)
    for _ in range(15):
        step.gradients([Pairs(pairs).read(np.arange(5))], lambda: None)
        step.apply()
    after = preference_figures(model.eval(), pairs, config, CPU)
    assert before["preference_accuracy"] == 0.0 and before["margin"] == pytest.approx(0, abs=1e-4)
    assert after["preference_accuracy"] == 1.0 and after["margin"] > 0.5
    assert after["preference_loss"] < before["preference_loss"]
    assert step.figures["preference_accuracy"].item() == 1.0


def test_the_win_rate_says_which_answer_is_likelier():
    model, pairs = tiny_gpt(vocab_size=262), pairs_of()
    batch = Pairs(pairs).read(np.arange(5))
    scores = answer_scores(model, batch).view(-1, 2)
    rate = preference_figures(model, pairs, PreferenceConfig(), CPU)["win_rate"]
    assert rate == pytest.approx((scores[:, 0] > scores[:, 1]).float().mean().item())
    assert 0 < rate < 1


def test_pairs_of_which_an_answer_is_too_long_are_left_out():
    pairs, too_long = encode_pairs([*PREFERENCES, prefers("a", "b" * 40, "c"),
                                    prefers("a", "b", "c" * 40)], chat_of(), 32)
    assert (len(pairs), len(too_long)) == (5, 2)


def test_reference_scores_belong_to_their_pairs_however_they_are_sorted():
    model, pairs = tiny_gpt(vocab_size=262), pairs_of()
    for pair in with_reference(pairs, model, CPU):
        alone = with_reference([pair], model, CPU)[0]
        assert pair.reference == pytest.approx(alone.reference, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 4.0}, {"bias": ["lm_head"]}], ids=str)
def test_token_losses_are_those_of_plain_cross_entropy(changes, monkeypatch):
    from gpt.training import cross_entropy
    monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", 262 * 3)  # three rows at a time
    model = tiny_gpt(vocab_size=262, **changes)
    (batch,) = padded_batches([pair.chosen for pair in pairs_of()], 999)
    found = token_losses(model, batch)
    plain = torch.nn.functional.cross_entropy(model(batch.inputs).transpose(1, 2), batch.targets,
                                              reduction="none")
    torch.testing.assert_close(found, plain)
    weights = torch.linspace(-1, 2, found.numel()).view_as(found)
    learn = [*model.lm_head.parameters()]
    gradients = [torch.autograd.grad((each * weights).sum(), learn, retain_graph=True)
                 for each in (found, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_preferred_answers_are_validated_as_text():
    model, pairs = tiny_gpt(vocab_size=262), pairs_of()
    score = evaluate(model, padded_batches([pair.chosen for pair in pairs], 20), torch.ones(262),
                     CPU)
    assert score.tokens == sum(len(each.chosen.content) + 1 for each in PREFERENCES)
