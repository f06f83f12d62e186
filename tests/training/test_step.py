"""One optimizer step: a gradient that depends on the global batch alone, also short of memory."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.errors import TrainingFailed
from gpt.machine.device import Machine
from gpt.training.step import Step
from tests.tiny import CPU, random_tokens, tiny_gpt
from tests.tiny_runs import (
    accumulate_gradients,
    batch_of,
    clip_gradients,
    flat,
    optimizer_of,
    weights_of,
)


def uneven_batch() -> MicroBatch:
    """Eight sequences with 12, 0, 1, 7, 12, 0, 3 and 5 supervised tokens."""
    targets = random_tokens(8, 12, seed=1)
    for row, supervised in enumerate((12, 0, 1, 7, 12, 0, 3, 5)):
        targets[row, supervised:] = IGNORE
    return MicroBatch(random_tokens(8, 12), targets, 96)


def cut(batch: MicroBatch, size: int) -> list[MicroBatch]:
    return [MicroBatch(inputs, targets, inputs.numel()) for inputs, targets in
            zip(batch.inputs.split(size), batch.targets.split(size), strict=True)]


def gradients_of(model) -> Tensor:
    return flat([p.grad for p in model.parameters()])


def gradient(batches: list[MicroBatch]) -> tuple[float, Tensor]:
    model = tiny_gpt()
    loss = accumulate_gradients(model, batches, CPU)
    assert loss.shape == ()
    return float(loss), gradients_of(model)


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
    norm = float(clip_gradients(model, 0))
    # Squares of some 20,000 numbers, summed in float32.
    assert norm == pytest.approx(float(gradients_of(model).double().norm()), rel=1e-5)
    assert float(clip_gradients(model, norm / 3)) == pytest.approx(norm)
    assert float(clip_gradients(model, 0)) == pytest.approx(norm / 3, rel=1e-4)
    assert float(clip_gradients(model, norm)) == pytest.approx(norm / 3, rel=1e-4)  # no lifting


def test_a_step_tells_the_norm_of_each_kind_of_weights_before_clipping():
    model, alike, batch = tiny_gpt(), tiny_gpt(), uneven_batch()
    step = Step(model, optimizer_of(model), CPU, 0.01)
    _, norm = step.gradients([batch], lambda: None)
    accumulate_gradients(alike, [batch], CPU)
    kinds = {"matrices": [w for n, w in alike.named_parameters() if "_proj" in n],
             "embeddings": [alike.embedding.token_embedding.weight],
             "output": [alike.output_weight],
             "vectors": [w for w in alike.parameters() if w.dim() == 1]}
    expected = {f"grad_norm_{kind}": torch.cat([w.grad.double().flatten() for w in each]).norm()
                for kind, each in kinds.items()}
    assert step.figures.keys() == expected.keys()
    for name, figure in step.figures.items():  # squares of some 20,000 numbers, in float32
        assert float(figure) == pytest.approx(float(expected[name]), rel=1e-5)
    whole = float(torch.stack([*expected.values()]).norm())
    assert float(norm) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_is_gradients_clipping_and_an_update(name):
    model, alike = tiny_gpt(), tiny_gpt()
    optimizer, batch, seeds = optimizer_of(alike, name=name), uneven_batch(), []
    step = Step(model, optimizer_of(model, name=name), CPU, 0.01)
    for _ in range(2):
        loss, norm = step.gradients([batch], lambda: seeds.append(1))
        expected = accumulate_gradients(alike, [batch], CPU)
        assert torch.equal(loss, expected)
        assert torch.equal(norm, clip_gradients(alike, 0.01)) and norm > 0.01
        assert torch.equal(gradients_of(model), gradients_of(alike))
        step.apply()
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(weights_of(model), weights_of(alike))
    assert len(seeds) == 2 and step.loss_scale is None and not step.skips_overflows
    assert not torch.equal(weights_of(model), weights_of(tiny_gpt()))


class ShortOfMemory:
    """A model's `hidden` that has room for so many sequences at a time."""

    def __init__(self, model, room: int):
        self.room, self.read, self._hidden = room, [], model.hidden
        model.hidden = self

    def __call__(self, tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.read.append(len(tokens))
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self._hidden(tokens, *args, **kwargs)


def step_of(model, machine: Machine = CPU, **settings: object) -> Step:
    return Step(model, optimizer_of(model), machine, 1.0, **settings)


@pytest.mark.parametrize(("sizes", "room", "read"), [
    ([8], 4, [8, 4, 4]),
    ([8], 2, [8, 4, 2, 2, 2, 2]),
    ([8], 1, [8, 4, 2, *[1] * 8]),
    ([2, 6], 3, [2, 6, 1, 1, 3, 3]),  # the first of them was done already
    ([3, 3, 2], 2, [3, 2, 1, 2, 1, 1, 1]),
    ([1, 7], 3, [1, 7, 1, 4, 1, 2, 2, 2, 1])], ids=str)
def test_micro_batches_are_halved_until_they_fit_and_the_gradient_stays(sizes, room, read):
    model, said = tiny_gpt(), []
    batch = batch_of(8)
    parts = [MicroBatch(inputs, targets, inputs.numel()) for inputs, targets in
             zip(batch.inputs.split(sizes), batch.targets.split(sizes), strict=True)]
    memory = ShortOfMemory(model, room)
    loss, norm = step_of(model, say=said.append).gradients(parts, lambda: None)

    undisturbed = tiny_gpt()
    expected_loss, expected_norm = step_of(undisturbed).gradients(parts, lambda: None)
    assert memory.read == read
    # The same products summed in another order: float32 rounding over some 50 tokens.
    assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert_close(norm, expected_norm, rtol=1e-5, atol=0)
    expected = gradients_of(undisturbed)
    assert_close(gradients_of(model), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    halved = [size for size in read if size > room]
    assert said == [f"out of memory: micro-batches of {size} sequences are halved; steps stay the "
                    "same" for size in halved]


def test_micro_batches_stay_small_once_memory_has_run_out():
    model, said = tiny_gpt(), []
    memory, step = ShortOfMemory(model, 4), step_of(model, say=said.append)
    for _ in range(2):
        memory.read.clear()
        step.gradients([batch_of(8)], lambda: None)
        step.apply()
    assert memory.read == [4, 4] and len(said) == 1
    memory.room = 2
    step.gradients([batch_of(8)], lambda: None)
    assert memory.read[2:] == [4, 2, 2, 2, 2] and len(said) == 2


def test_dropout_draws_what_it_would_have_with_small_micro_batches_from_the_start():
    parts = {name: tiny_gpt(dropout=0.3).train() for name in ("halved", "small", "other seed")}
    machine = Machine(torch.device("cpu"), torch.float32, seed=5)
    ShortOfMemory(parts["halved"], 2)
    losses = {}
    for name, model in parts.items():
        torch.manual_seed(0)  # so that the draws of the attempt that failed count where they can
        batches = [batch_of(8)] if name == "halved" else cut(batch_of(8), 2)
        seed = 4 if name == "other seed" else 3
        losses[name], _ = step_of(model, machine).gradients(
            batches, lambda seed=seed: machine.seed_step(seed))
    assert losses["halved"] == losses["small"]
    assert torch.equal(*[gradients_of(parts[name]) for name in ("halved", "small")])
    assert losses["other seed"] != losses["small"]


def test_what_a_failed_attempt_held_is_free_before_the_next():
    model, kept, alive = tiny_gpt(), [], []
    hidden, attempts = model.hidden, []

    def keep_then_fail(tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        x = hidden(tokens, *args, **kwargs)
        kept.append(weakref.ref(x))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("no room")
        return x

    def seed() -> None:
        alive.append(sum(reference() is not None for reference in kept))
        attempts.append(len(kept))

    model.hidden = keep_then_fail
    step_of(model, say=lambda text: None).gradients([batch_of(4)], seed)
    assert len(kept) == 3 and alive == [0, 0]


def test_what_a_failed_attempt_held_is_free_when_the_devices_cache_is_emptied():
    """Said right after emptying. What the exception's traceback still holds is not given back."""
    model, kept, alive = tiny_gpt(), [], []
    hidden = model.hidden

    def keep_then_fail(tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        x = hidden(tokens, *args, **kwargs)
        kept.append(weakref.ref(x))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no room")
        return x

    def say(text: str) -> None:
        alive.append(sum(reference() is not None for reference in kept))

    model.hidden = keep_then_fail
    step_of(model, say=say).gradients([batch_of(4)], lambda: None)
    assert alive == [0]


def test_one_sequence_without_room_ends_training_with_advice():
    model = tiny_gpt()
    ShortOfMemory(model, 0)
    said: list[str] = []
    step = step_of(model, say=said.append)
    with pytest.raises(TrainingFailed, match=r"out of memory with one sequence in a micro-batch; "
                       r"set train\.recompute_activations=true, or lower model\.block_size"):
        step.gradients([batch_of(2)], lambda: None)
    assert len(said) == 1
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("sentence", [
    "MPS backend out of memory (MPS allocated: 8 GB)", "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"])
def test_a_library_that_finds_no_memory_is_understood_too(sentence):
    model = tiny_gpt()
    hidden, sizes = model.hidden, []

    def short_of_memory(tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 1:
            raise RuntimeError(sentence)
        return hidden(tokens, *args, **kwargs)

    model.hidden = short_of_memory
    step_of(model).gradients([batch_of(2)], lambda: None)
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize(("machine", "deterministic"), [
    (Machine(torch.device("cuda"), torch.float32, deterministic=True), True),
    (Machine(torch.device("cuda"), torch.float32), False),
    (Machine(torch.device("cpu"), torch.float32, deterministic=True), False)], ids=repr)
def test_gradients_on_cuda_come_from_deterministic_kernels_where_that_is_asked_for(
        machine, deterministic, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: SimpleNamespace(
        is_enabled=lambda: False, scale=lambda loss: loss, unscale_=lambda optimizer: None))
    monkeypatch.setattr(Machine, "to_device", lambda machine, tensor: tensor)
    model, asked = tiny_gpt(), []
    hidden = model.hidden
    model.hidden = lambda *args: asked.append(
        torch.are_deterministic_algorithms_enabled()) or hidden(*args)
    model.embedding.token_embedding.weight.register_hook(lambda grad: asked.append(
        torch.are_deterministic_algorithms_enabled()))
    step_of(model, machine).gradients([batch_of(2)], lambda: None)
    assert asked == [deterministic, deterministic]  # forward and backward
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model = tiny_gpt()

    def fail(*args: object, **kwargs: object) -> Tensor:
        raise RuntimeError("something else")

    model.hidden = fail
    with pytest.raises(RuntimeError, match="something else"):
        step_of(model).gradients([batch_of(2)], lambda: None)


def test_a_portion_is_cut_into_rows_and_tokens_are_counted_once():
    batch = batch_of(7)
    segments = torch.arange(7 * 12).view(7, 12)
    batch = MicroBatch(batch.inputs, batch.targets, 80, segments)
    for pieces, sizes in ((1, [7]), (2, [4, 3]), (4, [2, 2, 2, 1]), (8, [1] * 7), (16, [1] * 7)):
        parts = batch.cut(pieces)
        assert [len(part.inputs) for part in parts] == sizes
        for name in ("inputs", "targets", "segments"):
            whole = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(whole, getattr(batch, name))
        assert [part.tokens for part in parts] == [80] + [0] * (len(sizes) - 1)
    assert batch_of(7).cut(2)[1].segments is None
