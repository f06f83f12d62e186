"""The training loop: what happens between steps, and what is told of it when."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gpt.errors import Stopped, TrainingFailed
from gpt.machine.device import Machine
from gpt.parallel import Layout
from gpt.runs import checkpoint
from gpt.training import loop
from gpt.training.evaluate import evaluate
from gpt.training.loop import is_due, no_garbage_collection
from gpt.training.step import Step
from tests.tiny import CPU, tiny_gpt
from tests.tiny_runs import accumulate_gradients, batch_of, finish, logged, trainer_of, weights_of


def cpu() -> Machine:
    machine = Machine(torch.device("cpu"), torch.float32)
    machine.peak_flops = 1e12  # not measured
    return machine


def test_evaluation_weighs_tokens_and_not_batches():
    model, batch = tiny_gpt(), batch_of(8)
    lengths = torch.full((61,), 2)
    whole = evaluate(model, [batch], lengths, CPU)
    parts = evaluate(model, batch.cut(3), lengths, CPU)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert whole.tokens == parts.tokens == batch.supervised_tokens
    assert whole.bits_per_byte == pytest.approx(whole.loss / 0.6931472 / 2, rel=1e-6)
    assert whole.loss == pytest.approx(float(accumulate_gradients(model, [batch], CPU)), rel=1e-6)
    means = [evaluate(model, [part], lengths, CPU).loss for part in batch.cut(3)]
    assert sum(means) / 3 != pytest.approx(whole.loss, rel=1e-4)


def test_evaluation_leaves_the_training_mode_as_it_was():
    model = tiny_gpt(dropout=0.5).train()
    first = evaluate(model, [batch_of()], torch.ones(61), CPU).loss
    assert model.training
    assert evaluate(model, [batch_of()], torch.ones(61), CPU).loss == first


def test_what_happens_every_so_many_steps():
    assert [step for step in range(10) if is_due(step, 4)] == [0, 4, 8]
    assert not is_due(4, None)


def test_the_collector_of_cycles_rests_while_training_and_works_after_a_failure():
    import gc
    with pytest.raises(ValueError), no_garbage_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def events(lines: list[dict]) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in lines]


EVENTFUL = {"eval": {"every_steps": 3}, "checkpoint": {"every_steps": 4},
            "log": {"samples_every_steps": 5}, "evaluate_first": True, "steps": 7}


def test_what_is_due_happens_between_steps_and_all_of_it_at_the_end(tmp_path):
    lines = finish(trainer_of(tmp_path, cpu(), **EVENTFUL))
    train = [("train", step) for step in range(1, 8)]
    assert events(lines) == [
        ("eval", 0), *train[:3], ("eval", 3), ("save", 3),  # a new best
        train[3], ("save", 4), *train[4:6], ("eval", 6), ("save", 6), train[6], ("save", 7),
        ("eval", 7), ("end", 7)]
    samples = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    assert [line["step"] for line in samples] == [5, 7]


@pytest.mark.parametrize("settings", [
    {}, EVENTFUL, {"ema_decay": 0.5, **EVENTFUL}, {"name": "muon", **EVENTFUL},
    {"log": {"every_steps": 2}, "steps": 5}, {"steps": 1}], ids=str)
def test_a_device_that_runs_ahead_tells_the_same_story(settings, tmp_path, monkeypatch):
    at_once = finish(trainer_of(tmp_path / "at-once", cpu(), **settings))
    monkeypatch.setattr(Machine, "runs_ahead", True)
    ahead = trainer_of(tmp_path / "ahead", cpu(), **settings)
    assert ahead.machine.runs_ahead
    assert finish(ahead) == at_once
    for name in ("samples.jsonl", "train.log"):
        here, there = (tmp_path / run / name for run in ("at-once", "ahead"))
        assert here.exists() == there.exists()
        assert not here.exists() or here.read_text() == there.read_text()


def test_a_device_that_runs_ahead_is_asked_for_a_loss_only_when_the_next_step_is_under_way(
        tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "runs_ahead", True)
    trainer, story = trainer_of(tmp_path, cpu(), steps=3, eval={"every_steps": None}), []
    read, event = trainer.read, trainer.log.event
    trainer.read = lambda step: story.append(f"read {step}") or read(step)
    trainer.log.event = lambda kind, step, **values: (
        story.append(f"{kind} {step}"), event(kind, step, **values))
    finish(trainer)
    assert story == ["read 0", "read 1", "train 1", "read 2", "train 2", "train 3", "save 3",
                     "eval 3", "end 3"]


class Device:
    """An accelerator with a clock: work is queued at once, and asking for a result waits for it."""

    def __init__(self, monkeypatch, seconds_per_step: float):
        self.now, self.done, self._seconds = 1e5, 0.0, seconds_per_step
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(loop, "Step", self.step_of)
        monkeypatch.setattr(Machine, "fetch", lambda machine, *results: (
            lambda: [float(result) for result in results]))

    def step_of(self, *args: object) -> object:
        step = Step(*args)
        gradients = step.gradients

        def queued(*args: object) -> tuple[object, object]:
            self.now += 0.25  # what Python takes to ask for it
            self.done = max(self.now, self.done) + self._seconds
            return tuple(Result(self, tensor, self.done) for tensor in gradients(*args))

        step.gradients = queued
        return step


class Result:
    def __init__(self, device: Device, tensor: Tensor, done: float):
        self._device, self._tensor, self._done = device, tensor, done

    def __float__(self) -> float:
        self._device.now = max(self._device.now, self._done)
        return float(self._tensor)


@pytest.mark.parametrize("ahead", [False, True], ids=["at once", "ahead"])
def test_tokens_per_second_are_the_devices_and_not_those_that_python_asks_for(
        ahead, tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "runs_ahead", ahead)
    Device(monkeypatch, seconds_per_step=4.0)
    trainer = trainer_of(tmp_path, cpu(), steps=8)
    finish(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["event"] == "train"]
    # A step of 64 tokens takes four seconds, and a quarter more where Python waits for its end.
    assert rates[3:7] == pytest.approx([64 / (4 if ahead else 4.25)] * 4)


def test_a_run_that_is_short_of_memory_says_so_and_learns_the_same(tmp_path, capsys):
    def run(name: str) -> tuple[Tensor, str]:
        trainer = trainer_of(tmp_path / name, cpu(), steps=3)
        hidden = trainer.model.hidden

        def short(tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
            if name == "short" and trainer.model.training and len(tokens) > 2:
                raise torch.OutOfMemoryError
            return hidden(tokens, *args, **kwargs)

        trainer.model.hidden = short
        lines = finish(trainer)
        return (torch.tensor([line["loss"] for line in lines if line["event"] == "train"]),
                (tmp_path / name / "train.log").read_text())

    (short, said), (plain, _) = run("short"), run("plain")
    torch.testing.assert_close(short, plain, rtol=1e-5, atol=0)
    assert said.count("out of memory: micro-batches of 4 sequences are halved") == 1


def test_every_line_of_training_says_what_it_was(tmp_path):
    trainer = trainer_of(tmp_path, cpu(), name="muon", steps=2,
                         optim={"schedule": "constant", "warmup_steps": 3})
    finish(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if line["event"] == "train")
    assert first["lr"] == first["lr_embeddings"] == first["lr_output"] == 1e-2 / 4
    assert first["lr_matrices"] == 0.02 / 4 and second["lr_matrices"] == 0.02 / 2
    assert (first["tokens"], second["tokens"]) == (64, 128)
    assert 0 < first["elapsed_seconds"] < second["elapsed_seconds"]
    assert all(first[name] > 0 for name in ("grad_norm", "tokens_per_second", "mfu",
                                            "peak_memory_bytes"))
    # Scores of variance 1 at first, over 257 tokens.
    assert first["loss"] == pytest.approx(math.log(257) + 0.5, rel=0.05)


@pytest.mark.parametrize("ahead", [False, True], ids=["at once", "ahead"])
def test_a_loss_that_is_not_finite_is_said_and_nothing_is_saved_after_it(
        ahead, tmp_path, monkeypatch):
    """Every step is saved; the one that goes wrong, and what follows, must not be."""
    monkeypatch.setattr(Machine, "runs_ahead", ahead)
    trainer = trainer_of(tmp_path, cpu(), steps=9, checkpoint={"every_steps": 1, "keep": 9})
    read, before = trainer.read, []

    def poisoned(step: int):
        if step == 4:
            trainer._saves.before_change()  # as an update does, which alone changes weights
            with torch.no_grad():
                trainer.model.final_norm.weight.fill_(float("nan"))
            before.append(weights_of(trainer.model))
        return read(step)

    trainer.read = poisoned
    kept = "were not saved" if ahead else "were not changed"
    with pytest.raises(TrainingFailed, match=rf"step 4: the loss is nan and the gradient norm nan; "
                       rf"the weights {kept}; go on from .* at lower learning rates"):
        finish(trainer)
    assert list(checkpoint.steps_in(tmp_path / "checkpoints")) == [4, 3, 2, 1]
    assert events(logged(tmp_path))[-2:] == [("train", 4), ("save", 4)]
    changed = not torch.equal(weights_of(trainer.model).nan_to_num(), before[0].nan_to_num())
    assert changed == ahead


def test_a_gradient_that_is_not_finite_is_said_too(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, cpu(), steps=9)
    monkeypatch.setattr(Layout, "clip", lambda self, model, limit: (torch.tensor(float("inf")), {}))
    said = r"step 0: the loss is 6\.\d+ and the gradient norm inf"
    with pytest.raises(TrainingFailed, match=said):
        finish(trainer)


@pytest.mark.parametrize("ahead", [False, True], ids=["at once", "ahead"])
def test_a_run_that_was_cut_in_two_logs_and_ends_like_one_that_was_not(
        ahead, tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "runs_ahead", ahead)
    settings = {"eval": {"every_steps": 3}, "name": "muon", "model": {"dropout": 0.1}}
    whole = trainer_of(tmp_path / "whole", cpu(), steps=6, **settings)
    expected = finish(whole)
    finish(trainer_of(tmp_path / "cut", cpu(), steps=3, **settings))
    rest = trainer_of(tmp_path / "cut", cpu(), steps=6, **settings)
    assert rest.state.step == 3
    assert without_saves(finish(rest)) == without_saves(expected)
    assert torch.equal(weights_of(rest.model), weights_of(whole.model))


def without_saves(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["event"] != "save"]


def test_sequences_in_other_portions_give_the_same_run(tmp_path):
    def losses(size: int) -> Tensor:
        lines = finish(trainer_of(tmp_path / str(size), cpu(), micro_batch_size=size, steps=4))
        return torch.tensor([line["loss"] for line in lines if line["event"] == "train"])

    # Rounding of a gradient grows where Adam divides it by its own size, so the first are alike
    # to 2^-23 and later ones a little less.
    torch.testing.assert_close(losses(4), losses(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("asked", [True, False])
def test_a_compiler_that_a_signal_interrupts_ends_the_run_as_the_signal_does(
        asked, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.cache_dir",
                        lambda: str(tmp_path / "cache"))
    for name, content in (("half.so", b""), ("whole.so", b"code")):
        (tmp_path / "cache" / name).write_bytes(content)
    trainer = trainer_of(tmp_path / "run", cpu(), eval={"every_steps": None})
    gradients = Step.gradients

    def interrupted(step: Step, *arguments):
        if trainer.state.step == 2:
            trainer.machine.stop.signal_name = "SIGINT" if asked else None
            raise RuntimeError("the compiler was killed")
        return gradients(step, *arguments)

    monkeypatch.setattr(Step, "gradients", interrupted)
    with pytest.raises(Stopped if asked else RuntimeError):
        finish(trainer)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == ({"whole.so"} if asked else {"half.so", "whole.so"})
    saved = checkpoint.newest_sound(tmp_path / "run/checkpoints")
    assert (saved is not None and saved.name.endswith("2")) == asked


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_signal_during_an_evaluation_ends_it_and_what_is_not_saved_is(at, tmp_path):
    settings = {"eval": {"every_steps": 3}, "checkpoint": {"every_steps": None},
                "evaluate_first": True}
    undisturbed = finish(trainer_of(tmp_path / "a", cpu(), **settings))
    trainer = trainer_of(tmp_path / "b", cpu(), **settings)
    validation = trainer.validation

    def asked():
        if trainer.state.step == at:
            trainer.machine.stop.signal_name = "SIGTERM"
        return validation()

    trainer.validation = asked
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {at}"):
        finish(trainer)
    lines = logged(tmp_path / "b")
    assert ("eval", at) not in events(lines) and lines[-1]["stopped_by"] == "SIGTERM"
    assert max(checkpoint.steps_in(tmp_path / "b/checkpoints"), default=0) == at
    finish(trainer_of(tmp_path / "b", cpu(), **settings))
    scores = [[line for line in logged(tmp_path / run) if line["event"] == "eval"]
              for run in ("a", "b")]
    assert scores[0] == scores[1] == [line for line in undisturbed if line["event"] == "eval"]
