"""How long to train: in steps, or by the clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gpt.configuration import TrainConfig
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.runs.checkpoint import TrainState
from gpt.training import loop
from gpt.training.budget import Budget
from tests.tiny import CPU
from tests.tiny_runs import trainer_of


@pytest.mark.parametrize(("train", "steps"), [
    ({"steps": 7}, 7), ({"tokens": 1000, "batch_size": 4}, 25), ({"tokens": 999, "batch_size": 4},
    24), ({"epochs": 2, "batch_size": 4}, 50), ({"batch_size": 3}, 34)], ids=str)
def test_every_budget_in_steps(train, steps):
    budget = Budget.of(TrainConfig(**train), sequences_per_epoch=100, tokens_per_sequence=10)
    assert budget.steps == steps
    assert not budget.is_spent(TrainState(step=steps - 1))
    assert budget.is_spent(TrainState(step=steps))
    assert budget.progress(TrainState(step=1, elapsed_seconds=1e6)) == pytest.approx(1 / steps)


def test_a_budget_in_minutes_follows_the_clock():
    budget = Budget.of(TrainConfig(max_minutes=0.5), 100, 10)
    assert budget.progress(TrainState(step=10**6, elapsed_seconds=15)) == 0.5
    assert budget.is_spent(TrainState(elapsed_seconds=30))
    assert not budget.is_spent(TrainState(step=10**6, elapsed_seconds=29.9))


def test_a_budget_of_less_than_one_step_is_refused():
    with pytest.raises(UserError, match=r"train\.tokens=39 is less than one step of 40 tokens"):
        Budget.of(TrainConfig(tokens=39, batch_size=4), 100, 10)


class Clock:
    """Stands still unless work is done."""

    def __init__(self, now: float = 1e5) -> None:
        self.now = now

    def work(self, seconds: float, result: object = None) -> object:
        self.now += seconds
        return result


DEADLINE, STEP_SECONDS, EVALUATION_SECONDS = 60.0, 1.0, 4.0


def timed_run(folder, monkeypatch, clock: Clock, steps: int | None = None, **settings: object):
    """A run of a minute in which steps take a second and evaluations four; its train lines."""
    import json
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    budget = {"steps": steps, "seconds": None} if steps else {"seconds": DEADLINE, "steps": None}
    machine = Machine(CPU.device, CPU.dtype)
    machine.peak_flops = 1e12
    trainer = trainer_of(folder, machine, **budget, **settings)
    read, validation = trainer.read, trainer.validation
    trainer.read = lambda step: clock.work(STEP_SECONDS, read(step))
    trainer.validation = lambda: clock.work(EVALUATION_SECONDS, validation())
    trainer.run()
    trainer.log.close()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "train"]


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine"])
def test_by_the_clock_the_learning_rate_is_down_at_the_deadline_and_training_ends_there(
        schedule, tmp_path, monkeypatch):
    lines = timed_run(tmp_path, monkeypatch, Clock(), eval={"every_steps": 7}, optim={
        "schedule": schedule, "warmup_steps": 0, "min_lr_fraction": 0.1})
    peak, last = max(line["lr"] for line in lines), lines[-1]
    assert DEADLINE <= last["elapsed_seconds"] <= DEADLINE + STEP_SECONDS
    # The last step begins a sixtieth before the end; wsd falls within half of the run.
    assert 0.1 * peak <= last["lr"] <= (0.1 + 0.03) * peak + 1e-12
    evaluations = len(lines) // 7
    assert len(lines) == DEADLINE - EVALUATION_SECONDS * evaluations  # whose time is counted
    assert evaluations > 3


def test_the_rate_of_a_step_knows_of_the_evaluation_just_before_it(tmp_path, monkeypatch):
    lines = timed_run(tmp_path, monkeypatch, Clock(), eval={"every_steps": 7},
                      optim={"schedule": "linear", "warmup_steps": 0})
    begun = [line["elapsed_seconds"] - STEP_SECONDS for line in lines]
    assert [line["lr"] for line in lines] == pytest.approx(
        [1e-2 * (1 - seconds / DEADLINE) for seconds in begun])
    assert begun[7] - begun[6] == STEP_SECONDS + EVALUATION_SECONDS


def test_without_the_clock_evaluations_do_not_shorten_a_run(tmp_path, monkeypatch):
    lines = timed_run(tmp_path, monkeypatch, Clock(), steps=60, eval={"every_steps": 7})
    assert len(lines) == 60
    assert lines[-1]["elapsed_seconds"] == 60 + 8 * EVALUATION_SECONDS


def test_time_between_two_parts_of_a_run_does_not_count(tmp_path, monkeypatch):
    clock, optim = Clock(), {"schedule": "linear", "warmup_steps": 0}
    trained = timed_run(tmp_path, monkeypatch, clock, steps=20, eval={"every_steps": None})
    clock.now = 3e8
    lines = timed_run(tmp_path, monkeypatch, clock, eval={"every_steps": None}, optim=optim)
    assert len(trained) == 20 and len(lines) == 60
    assert [line["elapsed_seconds"] for line in lines] == [float(n) for n in range(1, 61)]
    # It goes on at two thirds of the rate, not at the peak.
    assert lines[20]["lr"] == pytest.approx(1e-2 * 40 / 60)
