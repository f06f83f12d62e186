"""What becomes of steps whose loss is not finite, or far too high."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gpt.errors import TrainingFailed
from gpt.files.tensors import SavedTensors
from gpt.machine.device import Machine
from gpt.runs import checkpoint
from gpt.training import loop
from gpt.training.incidents import count
from tests.tiny_runs import finish, logged, trainer_of, weights_of
from tests.training.test_loop import cpu

SECTIONS = {"checkpoint": {"every_steps": 2}, "eval": {"every_steps": None}}
REAL = loop.Step.gradients


class RunsAhead(Machine):
    """A processor that is treated as an accelerator."""

    runs_ahead = True


def ahead():
    machine = RunsAhead(torch.device("cpu"), torch.float32)
    machine.peak_flops = 1e12
    return machine


def spoil(trainer, monkeypatch, losses):
    """Multiply the loss and the gradient of a batch, by its number, as often as it is read."""
    read, reading = trainer.read, []
    trainer.read = lambda number: (reading.append(number), read(number))[1]

    def gradients(self, batch, seed):
        loss, norm = REAL(self, batch, seed)
        factor = losses.get(reading[-1], 1.0)
        for weight in self._model.parameters():
            weight.grad *= factor
        return loss * factor, norm * factor

    monkeypatch.setattr(loop.Step, "gradients", gradients)
    return reading


def run_of(folder, machine, monkeypatch, losses, steps=8, **train):
    trainer = trainer_of(folder, machine, steps=steps, train=train, **SECTIONS)
    return trainer, spoil(trainer, monkeypatch, losses)


def steps_told(folder):
    return [line["step"] for line in logged(folder) if line["event"] == "train"]


def warnings(folder):
    return [line["message"] for line in logged(folder) if line["event"] == "warning"]


def incident(folder, number):
    return folder / "incidents" / f"step-{number:08d}"


@pytest.mark.parametrize("machine", [cpu, ahead])
def test_a_run_stops_before_anything_is_saved_and_writes_down_what_it_read(
        machine, tmp_path, monkeypatch):
    trainer, _ = run_of(tmp_path, machine(), monkeypatch, {4: math.nan})
    with pytest.raises(TrainingFailed, match=(
            r"step 4: the loss is nan and the gradient norm nan; the weights were not "
            r"(changed|saved); go on from step-00000004 at lower")):
        finish(trainer)
    assert (f"what step 4 read is kept; to take it again: python -m gpt replay "
            f"{incident(tmp_path, 4)}\n") in (tmp_path / "train.log").read_text()
    assert max(checkpoint.steps_in(tmp_path / "checkpoints")) == 4
    assert max(steps_told(tmp_path)) == 4
    about = json.loads((incident(tmp_path, 4) / "incident.json").read_text())
    assert (about["step"], about["batch"], about["loss"], about["grad_norm"]) == (
        4, 4, "nan", "nan")
    assert about["config"]["run"]["seed"] == 1337
    rows = [json.loads(line) for line in
            (incident(tmp_path, 4) / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    inputs = trainer.read(4)[0].inputs
    for row, ids in zip(rows, inputs.tolist(), strict=True):
        assert row["text"] == trainer.tokenizer.decode(ids)
        [origin] = row["from"]
        start, stop = origin["tokens"]
        assert stop - start == 17 and origin["text"] == "the text"
    kept = SavedTensors(incident(tmp_path, 4) / "batch.safetensors")
    assert torch.equal(kept["0/inputs"], inputs)


def test_the_weights_before_the_step_are_kept_where_they_are_still_there(tmp_path, monkeypatch):
    trainer, _ = run_of(tmp_path / "cpu", cpu(), monkeypatch, {4: math.nan})
    with pytest.raises(TrainingFailed):
        finish(trainer)
    assert checkpoint.damage(incident(tmp_path / "cpu", 4)) == []
    kept = checkpoint.load_model(incident(tmp_path / "cpu", 4))
    assert torch.equal(weights_of(kept), weights_of(trainer.model))
    trainer, _ = run_of(tmp_path / "ahead", ahead(), monkeypatch, {4: math.nan})
    with pytest.raises(TrainingFailed):
        finish(trainer)
    assert checkpoint.damage(incident(tmp_path / "ahead", 4)) == [
        "model.safetensors is not in the manifest"]


@pytest.mark.parametrize("machine", [cpu, ahead])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_left_out_changes_nothing_and_the_next_ones_are_taken(
        machine, bad, tmp_path, monkeypatch):
    trainer, read = run_of(tmp_path, machine(), monkeypatch, {3: bad, 5: bad},
                           on_nonfinite="skip")
    weights, apply = {}, loop.Step.apply

    def applied(self):
        weights.setdefault(read[-1], weights_of(self._model))
        apply(self)

    monkeypatch.setattr(loop.Step, "apply", applied)
    finish(trainer)
    assert read == [*range(8)] and sorted(weights) == [0, 1, 2, 4, 6, 7]
    assert steps_told(tmp_path) == [1, 2, 3, 5, 7, 8]
    assert [message.split(";")[0] for message in warnings(tmp_path)] == [
        f"step {step}: the loss is {bad} and the gradient norm {bad}" for step in (3, 5)]
    assert warnings(tmp_path)[0].endswith("; this step is left out")
    assert torch.isfinite(weights_of(trainer.model)).all()
    assert trainer.state.step == 8 and trainer.state.tokens == 8 * 64


@pytest.mark.parametrize(("machine", "bad", "begun"), [
    (cpu, 2, []), (cpu, 3, []), (ahead, 3, []),
    (ahead, 2, [3])])  # the next step is under way when the device tells
def test_a_run_goes_back_and_leaves_out_the_data_up_to_the_step(machine, bad, begun, tmp_path,
                                                                monkeypatch):
    trainer, read = run_of(tmp_path, machine(), monkeypatch, {bad: math.nan}, steps=6,
                           on_nonfinite="rollback")
    told, left_out = finish(trainer), bad - 1
    assert read == [*range(bad + 1), *begun, *range(bad + 1, 6 + left_out)]
    assert steps_told(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert warnings(tmp_path) == [
        f"step {bad}: the loss is nan and the gradient norm nan; the run goes back",
        f"back at step-00000002, with the data behind that of step {bad}"]
    assert told[-1]["event"] == "end" and trainer.state.passed_over == left_out

    # The same as a run that never read batches 2 to `bad`.
    other = trainer_of(tmp_path / "other", machine(), steps=6, **SECTIONS)
    given = other.read
    other.read = lambda number: given(number if number < 2 else number + left_out)
    finish(other)
    assert torch.equal(weights_of(other.model), weights_of(trainer.model))


def test_what_was_due_before_a_run_went_back_is_done_when_it_comes_there_again(tmp_path,
                                                                               monkeypatch):
    trainer = trainer_of(tmp_path, ahead(), steps=6, train={"on_nonfinite": "rollback"},
                         checkpoint={"every_steps": 2}, eval={"every_steps": 4})
    spoil(trainer, monkeypatch, {3: math.nan})
    told = finish(trainer)
    assert [line["step"] for line in told if line["event"] == "eval"] == [4, 6]


def test_a_run_that_goes_back_after_its_last_step_is_trained_to_its_end(tmp_path, monkeypatch):
    trainer, read = run_of(tmp_path, ahead(), monkeypatch, {5: math.nan}, steps=6,
                           on_nonfinite="rollback")
    finish(trainer)
    assert read == [*range(8)] and steps_told(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert max(checkpoint.steps_in(tmp_path / "checkpoints")) == trainer.state.step == 6


def test_a_run_that_went_back_and_was_stopped_goes_on_where_it_would_have(tmp_path, monkeypatch):
    whole, read = run_of(tmp_path / "whole", cpu(), monkeypatch, {3: math.nan}, steps=8,
                         on_nonfinite="rollback")
    finish(whole)
    cut, _ = run_of(tmp_path / "cut", cpu(), monkeypatch, {3: math.nan}, steps=6,
                    on_nonfinite="rollback")
    finish(cut)
    rest, read = run_of(tmp_path / "cut", cpu(), monkeypatch, {}, steps=8,
                        on_nonfinite="rollback")
    finish(rest)
    assert read == [8, 9]
    assert torch.equal(weights_of(rest.model), weights_of(whole.model))


@pytest.mark.parametrize("ema", [None, 0.5])
def test_going_back_brings_everything_back(ema, tmp_path, monkeypatch):
    sections = {**SECTIONS, "train": {"on_nonfinite": "rollback"}}
    trainer = trainer_of(tmp_path / "a", cpu(), steps=6, ema_decay=ema, **sections)
    spoil(trainer, monkeypatch, {3: math.nan})
    finish(trainer)
    monkeypatch.undo()
    other = trainer_of(tmp_path / "b", cpu(), steps=6, ema_decay=ema, **SECTIONS)
    given = other.read
    other.read = lambda number: given(number if number < 2 else number + 2)
    finish(other)
    newest = [tmp_path / run / "checkpoints" / "step-00000006" for run in "ab"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), name
    losses = [checkpoint.read_state(path).losses for path in newest]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_checkpoint_that_was_damaged_is_passed_over_and_written_anew(tmp_path, monkeypatch):
    trainer, read = run_of(tmp_path, cpu(), monkeypatch, {5: math.nan}, on_nonfinite="rollback")
    given, path = trainer.read, tmp_path / "checkpoints" / "step-00000004"

    def spoiling(number):
        if number == 5:
            trainer._saves.wait()
            (path / "model.safetensors").write_bytes(b"nothing")
        return given(number)

    trainer.read = spoiling
    finish(trainer)
    assert any("back at step-00000002" in message for message in warnings(tmp_path))
    assert trainer.state.passed_over == 4
    assert read == [0, 1, 2, 3, 4, 5, *range(6, 12)]
    told = [line["step"] for line in logged(tmp_path) if line["event"] == "save"]
    assert told == [2, 4, 6, 8]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path, monkeypatch):
    trainer, _ = run_of(tmp_path, cpu(), monkeypatch, {1: math.nan}, on_nonfinite="rollback")
    with pytest.raises(TrainingFailed, match="step 1: there is no checkpoint yet to go back to"):
        finish(trainer)


@pytest.mark.parametrize("then", ["skip", "rollback"])
def test_too_many_incidents_end_a_run(then, tmp_path, monkeypatch):
    trainer, _ = run_of(tmp_path, cpu(), monkeypatch, dict.fromkeys(range(3, 20), math.nan),
                        steps=20, on_nonfinite=then, max_incidents=3)
    with pytest.raises(TrainingFailed, match=r"the last of more than train\.max_incidents=3; the "
                                             "weights were not changed"):
        finish(trainer)
    assert count(tmp_path) == 4


def test_a_spike_is_a_warning_unless_it_is_to_be_left_out(tmp_path, monkeypatch):
    for then in ("warn", "skip", "stop"):
        folder = tmp_path / then
        trainer, _ = run_of(folder, cpu(), monkeypatch, {40: 30.0}, steps=44, on_spike=then)
        if then == "stop":
            with pytest.raises(TrainingFailed, match=r"step 40: the loss is .* as these scatter"):
                finish(trainer)
        else:
            finish(trainer)
        assert len(warnings(folder)) == (then != "stop")
        assert (41 in steps_told(folder)) == (then == "warn")
        assert count(folder) == (then != "warn")


def test_losses_are_compared_with_those_before_a_stop(tmp_path, monkeypatch):
    trainer_of_40, _ = run_of(tmp_path, cpu(), monkeypatch, {}, steps=40)
    finish(trainer_of_40)
    rest, _ = run_of(tmp_path, cpu(), monkeypatch, {40: 30.0}, steps=41)
    finish(rest)
    assert len(warnings(tmp_path)) == 1


def test_overflows_of_float16_are_no_incidents(tmp_path, monkeypatch):
    machine = cpu()
    machine.dtype = torch.float16
    trainer, _ = run_of(tmp_path, machine, monkeypatch, {}, steps=2)
    trainer.run()
    assert trainer._update.skips_overflows and count(tmp_path) == 0
