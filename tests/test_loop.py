"""The training loop: gradients that depend on the global batch alone, and budgets."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.checkpoint import TrainState
from gpt.config import TrainConfig
from gpt.errors import UserError
from gpt.evaluate import evaluate
from gpt.loop import Budget, accumulate_gradients, clip_gradients, is_due
from tests.tiny import CPU, random_tokens, tiny_gpt


def uneven_batch() -> MicroBatch:
    """Eight sequences with 12, 0, 1, 7, 12, 0, 3 and 5 supervised tokens."""
    targets = random_tokens(8, 12, seed=1)
    for row, supervised in enumerate((12, 0, 1, 7, 12, 0, 3, 5)):
        targets[row, supervised:] = IGNORE
    return MicroBatch(random_tokens(8, 12), targets, 96)


def cut(batch: MicroBatch, size: int) -> list[MicroBatch]:
    return [MicroBatch(inputs, targets, inputs.numel()) for inputs, targets in
            zip(batch.inputs.split(size), batch.targets.split(size), strict=True)]


def gradient(batches: list[MicroBatch]) -> tuple[float, torch.Tensor]:
    model = tiny_gpt()
    loss = accumulate_gradients(model, batches, CPU)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("even", [True, False], ids=["even", "uneven"])
def test_accumulation_1x8_2x4_4x2_8x1_gives_the_same_gradient(even):
    batch = uneven_batch()
    if even:
        batch = MicroBatch(batch.inputs, random_tokens(8, 12, seed=1), 96)
    loss, expected = gradient([batch])
    for size in (4, 2, 1, 3):
        other_loss, other = gradient(cut(batch, size))
        assert other_loss == pytest.approx(loss, rel=1e-6)
        # The same products summed in another order: float32 rounding, 2^-23, over 40 tokens.
        assert_close(other, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_mean_of_means_would_have_been_noticed():
    batch = uneven_batch()
    parts = [part for part in cut(batch, 2) if part.supervised_tokens]
    means = [gradient([part])[0] for part in parts]
    assert sum(means) / len(means) != pytest.approx(gradient([batch])[0], rel=1e-3)


def test_a_micro_batch_without_supervised_tokens_is_harmless():
    batch = uneven_batch()
    empty = MicroBatch(batch.inputs, torch.full_like(batch.targets, IGNORE), 96)
    loss, expected = gradient([batch])
    with_empty_loss, with_empty = gradient([empty, batch, empty])
    assert with_empty_loss == loss
    assert torch.equal(with_empty, expected)


def test_clipping_limits_the_norm_and_zero_leaves_it():
    model = tiny_gpt()
    accumulate_gradients(model, [uneven_batch()], CPU)
    norm = clip_gradients(model, 0)
    assert clip_gradients(model, norm / 3) == pytest.approx(norm)
    assert clip_gradients(model, 0) == pytest.approx(norm / 3, rel=1e-4)


def test_evaluation_weighs_tokens_and_not_batches():
    model, batch = tiny_gpt(), uneven_batch()
    lengths = torch.full((61,), 2)
    whole = evaluate(model, [batch], lengths, CPU)
    parts = evaluate(model, cut(batch, 3), lengths, CPU)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert whole.tokens == parts.tokens == 40
    assert whole.bits_per_byte == pytest.approx(whole.loss / 0.6931472 / 2, rel=1e-6)
    assert whole.loss == pytest.approx(gradient([batch])[0], rel=1e-6)


def test_evaluation_leaves_the_training_mode_as_it_was():
    model = tiny_gpt(dropout=0.5).train()
    first = evaluate(model, [uneven_batch()], torch.ones(61), CPU).loss
    assert model.training
    assert evaluate(model, [uneven_batch()], torch.ones(61), CPU).loss == first


@pytest.mark.parametrize(("train", "steps"), [
    ({"steps": 7}, 7), ({"tokens": 1000, "batch_size": 4}, 25), ({"tokens": 999, "batch_size": 4},
    24), ({"epochs": 2, "batch_size": 4}, 50), ({"batch_size": 3}, 34)], ids=str)
def test_every_budget_in_steps(train, steps):
    budget = Budget.of(TrainConfig(**train), sequences_per_epoch=100, tokens_per_sequence=10)
    assert budget.steps == steps
    assert not budget.is_spent(TrainState(step=steps - 1))
    assert budget.is_spent(TrainState(step=steps))


def test_a_budget_in_minutes_follows_the_clock():
    budget = Budget.of(TrainConfig(max_minutes=0.5), 100, 10)
    assert budget.progress(TrainState(step=10**6, elapsed_seconds=15)) == 0.5
    assert budget.is_spent(TrainState(elapsed_seconds=30))


def test_what_happens_every_so_many_steps():
    assert [step for step in range(10) if is_due(step, 4)] == [0, 4, 8]
    assert not is_due(4, None)


def test_a_budget_of_less_than_one_step_is_refused():
    with pytest.raises(UserError, match=r"train\.tokens=39 is less than one step of 40 tokens"):
        Budget.of(TrainConfig(tokens=39, batch_size=4), 100, 10)
