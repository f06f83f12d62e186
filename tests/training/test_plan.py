"""What a run will cost, before it costs anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gpt.batches import MicroBatch
from gpt.configuration import TrainConfig
from gpt.machine import hardware
from gpt.machine.device import Machine
from gpt.model import activation_bytes
from gpt.optim import WeightAverage
from gpt.training import choices, plan
from gpt.training.budget import Budget
from gpt.training.choices import (
    activation_budget,
    choose_micro_batch_size,
    evaluation_tokens,
)
from gpt.training.objective import summed_loss
from gpt.training.plan import Plan, Work, measure_plan, memory_by_kind, memory_line
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_config, tiny_gpt
from tests.tiny_runs import finish, optimizer_of, rates, trainer_of


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("tied", [False, True])
def test_memory_of_weights_gradients_and_optimizer_is_what_they_hold(name, ema_decay, tied):
    model = tiny_gpt(tie_embeddings=tied)
    optimizer = optimizer_of(model, name=name)
    model(random_tokens(2, 8)).sum().backward()
    kinds = memory_by_kind(model, rates(name, ema_decay=ema_decay), 2 * 32)
    assert kinds["weights"] == sum(p.nbytes for p in model.parameters())
    assert kinds["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    optimizer.step()
    if ema_decay is not None:
        WeightAverage(model, optimizer.state, ema_decay).update()
    kept = [tensor.nbytes for state in optimizer.state.values() for tensor in state.values()
            if tensor.dim()]  # each weight's count of steps aside
    assert kinds["optimizer"] == sum(kept)


def kept_for_backward(recompute: bool, **changes: object) -> int:
    """Bytes of the tensors that a forward pass over three rows keeps, weights aside."""
    model = tiny_gpt(n_embd=64, vocab_size=500, **changes).train()
    model.recompute = recompute
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = random_tokens(3, model.config.block_size, vocab_size=500)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        summed_loss(model, MicroBatch(tokens, tokens, tokens.numel()))
    return sum(kept.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("changes", [
    {}, {"mlp": "gelu", "norm": "layernorm"}, {"n_layer": 4}, {"attention_softcap": 2.0},
    {"attention_softcap": 2.0, "block_size": 96, "window": 5}, ARCHITECTURES["gemma"],
    ARCHITECTURES["olmo"]], ids=str)
def test_memory_of_activations_is_an_upper_bound_that_is_not_far_off(changes, recompute):
    model = tiny_gpt(n_embd=64, vocab_size=500, **changes)
    needed = kept_for_backward(recompute, **changes)
    if recompute:  # and, in the backward pass, all of one layer at a time
        deeper = changes | {"n_layer": model.config.n_layer + 1}
        needed += kept_for_backward(False, **deeper) - kept_for_backward(False, **changes)
    tokens = 3 * model.config.block_size
    assert needed <= memory_by_kind(model, rates(), tokens, recompute)["activations"] <= 2 * needed


def test_memory_grows_with_the_micro_batch_where_it_should():
    model = tiny_gpt()
    one, four = (memory_by_kind(model, rates(), 32 * size) for size in (1, 4))
    assert four["activations"] == 4 * one["activations"]
    assert four["logits"] - one["logits"] == 3 * 2 * 4 * 61 * 32
    assert one["logits"] == 2 * 4 * 61 * 32 + model.output_weight.nbytes  # whose gradient waits
    assert four["optimizer"] == one["optimizer"] == 2 * one["weights"]


def test_the_line_for_people_names_every_kind_and_the_sum():
    model = tiny_gpt()
    line, kinds = memory_line(model, rates(), 64), memory_by_kind(model, rates(), 64)
    for name, size in kinds.items():
        assert f"{name} {size / 2**20:,.1f}" in line
    assert line.endswith(f"; {sum(kinds.values()) / 2**20:,.1f} in all")


def in_memory(monkeypatch, sequences: float, **model: object):
    """A model, and a machine that has room for the activations of so many sequences."""
    config = tiny_config(**model)
    room = int(sequences * activation_bytes(config, False) * config.block_size)
    monkeypatch.setattr(choices, "activation_budget", lambda machine: room)
    return config


@pytest.mark.parametrize(("block_size", "micro_batch_size", "room", "expected"), [
    (32, "auto", 1e6, 8192 // 32), (8192, "auto", 1e6, 1), (3000, "auto", 1e6, 2),
    (2**14, "auto", 1e6, 1),  # a sequence at least
    (32, 4, 1e6, 4), (32, 10**6, 1e6, 256),  # no more than training takes, where that is given
    (32, "auto", 7.5, 7), (32, "auto", 0.5, 1), (32, 5, 3, 3)], ids=str)
def test_evaluation_scores_as_many_sequences_as_fit_and_pay(
        block_size, micro_batch_size, room, expected, monkeypatch):
    model = in_memory(monkeypatch, room, block_size=block_size)
    for batch_size in (1, 64):
        train = TrainConfig(micro_batch_size=micro_batch_size, batch_size=batch_size)
        assert evaluation_tokens(train, model, CPU) // block_size == expected


@pytest.mark.parametrize(("batch_size", "micro_batch_size", "room", "expected"), [
    (8, "auto", 100, 8), (8, "auto", 0.5, 1), (8, 3, 0.5, 3), (8, 9, 100, 8),
    (8, "auto", 5.5, 4), (96, "auto", 50, 48), (7, "auto", 5.5, 5)],  # portions alike, or as large
    ids=str)
def test_micro_batches_are_what_fits_or_what_is_asked_for(
        batch_size, micro_batch_size, room, expected, monkeypatch):
    model = in_memory(monkeypatch, room)
    train = TrainConfig(micro_batch_size=micro_batch_size, batch_size=batch_size)
    assert choose_micro_batch_size(train, model, CPU) == expected


def test_recomputed_activations_leave_room_for_more_sequences(monkeypatch):
    model = in_memory(monkeypatch, 4, n_layer=12)
    sizes = [choose_micro_batch_size(TrainConfig(batch_size=64, recompute_activations=on), model,
                                     CPU) for on in (False, True)]
    assert sizes[0] == 4 < sizes[1]


def test_a_cpu_sets_little_aside_for_activations(monkeypatch):
    for gigabytes, expected in ((4, 2**29), (64, 2**31)):
        sizes = {"SC_PHYS_PAGES": gigabytes * 2**18, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(hardware.os, "sysconf", sizes.__getitem__)
        assert activation_budget(CPU) == expected


class Toil:
    """A clock that moves when something is done, a Step, its batches and a machine."""

    peak = 2**20

    def __init__(self, monkeypatch, first: float, per_step: float):
        self.now, self.steps, self._costs = 0.0, 0, (first, per_step)
        self.device = torch.device("cpu")
        monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: self.now))

    def work(self, seconds: float) -> None:
        self.now += seconds

    def gradients(self, batch: object, seed: object) -> None:
        self.now += self._costs[min(self.steps, 1)] / 2

    def apply(self) -> None:  # the other half of a step is only seen by who waits for it
        self.steps += 1

    def wait(self) -> None:
        if self.steps:
            self.now += self._costs[min(self.steps - 1, 1)] / 2

    def step(self, number: int) -> list[MicroBatch]:
        tokens = random_tokens(4, 16)
        return [MicroBatch(tokens, tokens, 60)] * 2

    def seed_step(self, number: int) -> None:
        raise AssertionError("gradients seeds, not the plan")

    def peak_memory_bytes(self) -> int:
        return self.peak


def planned(monkeypatch, budget: Budget, *besides: tuple[float, int | None, float]) -> Plan:
    """besides: seconds, every so many steps, share that is done. Steps take 2 s, the first 12."""
    toil = Toil(monkeypatch, 12, 2)
    works = []
    for seconds, every_steps, share in besides:
        # Waiting for the device costs a second, as after a step.
        works.append(Work(lambda seconds=seconds, share=share: toil.work(seconds * share - 1),
                          (every_steps,), False, share))
    result = measure_plan(tiny_gpt(), toil, toil, budget, works, toil)
    assert toil.steps >= 6
    return result


def test_a_plan_adds_up_its_steps_and_what_the_first_one_takes_longer(monkeypatch):
    found = planned(monkeypatch, Budget(steps=100))
    assert (found.steps, found.seconds_per_step) == (100, 2)
    assert found.seconds == 12 + 99 * 2
    assert (found.tokens_per_step, found.peak_memory_bytes) == (120, 2**20)
    assert found.parameters == sum(p.numel() for p in tiny_gpt().parameters())
    assert found.seconds_besides == 10
    text = str(found)
    assert "12,000 in 100 steps of 120" in text and "3.50 minutes at 60 tokens/s" in text


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_what_was_done_in_part_is_counted_whole(share, monkeypatch):
    found = planned(monkeypatch, Budget(steps=100), (20, None, share), (6, 50, 1.0))
    assert found.seconds == pytest.approx(12 + 99 * 2 + 20 + 2 * 6)
    assert found.seconds_after == pytest.approx(20 + 6)


def times(lines: list[dict], event: str) -> int:
    return sum(line["event"] == event for line in lines)


@pytest.mark.parametrize(("steps", "every"), [(6, 3), (7, 3), (2, 3), (6, None), (3, 3), (1, 1)])
def test_a_plan_counts_evaluations_saves_and_samples_as_often_as_a_run_does_them(
        steps, every, tmp_path, monkeypatch):
    machine = Machine(torch.device("cpu"), torch.float32)
    machine.peak_flops = 1e12  # not measured
    trainer = trainer_of(tmp_path, machine, steps=steps, eval={"every_steps": every},
                         checkpoint={"every_steps": every},
                         log={"samples_every_steps": every or 10**6})
    lines = finish(trainer)
    samples = (tmp_path / "samples.jsonl").read_text().count("\n")
    found = planned(monkeypatch, Budget(steps=steps), (20, every, 1.0), (7, every, 1.0),
                    (3, every or 10**6, 1.0))
    expected = 20 * times(lines, "eval") + 7 * times(lines, "save") + 3 * samples
    assert found.seconds == pytest.approx(10 + 2 * steps + expected)


def test_saves_follow_their_own_interval_and_that_of_evaluations_and_a_first_one_is_counted():
    both = Work(lambda: None, (4, 6))
    assert [both.times(steps) for steps in (1, 4, 5, 7, 13, 25)] == [1, 1, 2, 3, 5, 9]
    assert Work(lambda: None, (4, None)).times(9) == 3
    assert Work(lambda: None, (4,), first=True).times(9) == 4


def test_a_plan_by_the_clock_fits_steps_and_evaluations_into_the_time(monkeypatch):
    found = planned(monkeypatch, Budget(seconds=600), (20, 10, 1.0))
    # Ten steps take 20 seconds and their evaluation as long.
    assert found.steps == 150
    assert found.seconds <= 600 + 10 + 20


def test_a_plan_takes_the_median_of_steps_so_that_a_pause_does_not_count(monkeypatch):
    toil = Toil(monkeypatch, 12, 2)
    apply, pauses = toil.apply, iter([0, 0, 500, 0, 0, 0])
    toil.apply = lambda: (apply(), toil.work(next(pauses)))
    assert measure_plan(tiny_gpt(), toil, toil, Budget(steps=10), [], toil).seconds_per_step == 2
