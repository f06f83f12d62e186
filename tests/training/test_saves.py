"""Which checkpoints a run keeps, and what a save that fails does to it."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from gpt.errors import Stopped
from gpt.runs import checkpoint
from gpt.runs.checkpoint import Contents, saving
from gpt.training import saves
from tests.runs.test_checkpoint import files_of
from tests.tiny_runs import finish, logged, trainer_of
from tests.training.test_loop import cpu

EVERY_2 = {"checkpoint": {"every_steps": 2, "keep": 1}, "eval": {"every_steps": None}}


def steps_of(folder):
    return [*checkpoint.steps_in(folder / "checkpoints")]


def with_checkpoint(**changes):
    return {**EVERY_2, "checkpoint": {**EVERY_2["checkpoint"], **changes}}


def test_in_the_background_the_same_is_saved_as_while_training_waits(tmp_path):
    kept = {}
    for name, background in (("behind", True), ("waiting", False)):
        told = finish(trainer_of(tmp_path / name, cpu(),
                                 **with_checkpoint(background=background, keep=9)))
        assert [line["step"] for line in told if line["event"] == "save"] == [2, 4, 6]
        assert told[-1]["event"] == "end"
        kept[name] = {f"{path.name}/{file}": (path / file).read_bytes()
                      for path in checkpoint.steps_in(tmp_path / name / "checkpoints").values()
                      for file in files_of(path) if file not in ("state.json", "manifest.json")}
    assert kept["behind"] == kept["waiting"] and len(kept["behind"]) == 15


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_changes_until_it_is_copied(ema_decay, fails, tmp_path, monkeypatch):
    """The copy takes long; what comes after it in the loop, an error as well, has to wait."""
    copied, saved = Contents.copied, {}
    monkeypatch.setattr(Contents, "copied",
                        lambda self, room: (time.sleep(0.1), copied(self, room))[1])
    for name, background in (("behind", True), ("waiting", False)):
        trainer = trainer_of(tmp_path / name, cpu(), steps=4, ema_decay=ema_decay,
                             checkpoint={"every_steps": 2, "background": background, "keep": 9},
                             eval={"every_steps": 2})
        if fails:
            trainer.evaluate_first = False
            trainer.measure = lambda: 1 / 0
        with contextlib.suppress(ZeroDivisionError):
            finish(trainer)
        saved[name] = {
            f"{path.name}/{file}": (path / file).read_bytes()
            for path in checkpoint.steps_in(tmp_path / name / "checkpoints").values()
            for file in ("model.safetensors", "optimizer.safetensors")}
    assert saved["behind"] == saved["waiting"] and len(saved["behind"]) == (2 if fails else 4)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    learned, seal, trainer = threading.Event(), saving._seal, trainer_of(tmp_path, cpu(), **EVERY_2)
    while_writing = []

    def slow(folder):
        while_writing.append(learned.wait(10))
        seal(folder)

    read = trainer.read
    trainer.read = lambda step: (learned.set() if step == 3 else None, read(step))[1]
    monkeypatch.setattr(saving, "_seal", slow)
    finish(trainer)
    assert while_writing[0] and steps_of(tmp_path) == [6]


def test_every_nth_checkpoint_is_kept_for_good(tmp_path):
    finish(trainer_of(tmp_path, cpu(), steps=12, **with_checkpoint(keep_every_steps=4)))
    assert steps_of(tmp_path) == [12, 8, 4]
    finish(trainer_of(tmp_path / "else", cpu(), steps=12, **EVERY_2))
    assert steps_of(tmp_path / "else") == [12]


@pytest.mark.parametrize("background", [True, False])
def test_a_write_that_fails_ends_the_run_and_keeps_what_there_was(background, tmp_path,
                                                                  monkeypatch):
    trainer, seal, calls = trainer_of(tmp_path, cpu(), steps=50,
                                      **with_checkpoint(background=background)), saving._seal, []

    def second_fails(folder):
        calls.append(folder.name)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(folder))
        seal(folder)

    # So slowly that a write is over before the next step is.
    read = trainer.read
    trainer.read = lambda step: (time.sleep(0.05), read(step))[1]
    monkeypatch.setattr(saving, "_seal", second_fails)
    with pytest.raises(OSError, match="Input/output error"):
        finish(trainer)
    assert len(calls) == 2 and steps_of(tmp_path) == [2]
    assert [*(tmp_path / "checkpoints").iterdir()] == [tmp_path / "checkpoints" / "step-00000002"]
    told = logged(tmp_path)
    assert max(line["step"] for line in told if line["event"] == "train") <= 6


def test_a_write_that_fails_ends_the_run_long_before_the_next_save(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, cpu(), steps=60, **with_checkpoint(every_steps=20))
    failed, read = threading.Event(), trainer.read

    def fail(folder):
        failed.set()
        raise OSError(5, "Input/output error", str(folder))

    trainer.read = lambda step: (step < 20 or failed.wait(10), time.sleep(0.02), read(step))[2]
    monkeypatch.setattr(saving, "_seal", fail)
    with pytest.raises(OSError, match="Input/output error"):
        finish(trainer)
    assert max(line["step"] for line in logged(tmp_path) if line["event"] == "train") <= 22


@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_waits_for_what_is_being_written(fails, tmp_path, monkeypatch):
    machine, seal = cpu(), saving._seal
    trainer = trainer_of(tmp_path, machine, steps=50, **with_checkpoint(every_steps=20))

    def slow(folder):
        time.sleep(0.2)
        if fails:
            raise OSError(5, "Input/output error", str(folder))
        seal(folder)

    monkeypatch.setattr(saving, "_seal", slow)
    read = trainer.read

    def stop_at_3(step):
        if step == 3:
            machine.stop.signal_name = "SIGTERM"
        return read(step)

    trainer.read = stop_at_3
    with pytest.raises(OSError if fails else Stopped,
                       match="Input/output" if fails else "by SIGTERM at step 4; saved in"):
        finish(trainer)
    if fails:
        return
    assert steps_of(tmp_path) == [4]
    assert [*(tmp_path / "checkpoints").iterdir()] == [tmp_path / "checkpoints" / "step-00000004"]


@pytest.mark.parametrize("every_steps", [4, None])
def test_memory_for_copies_is_taken_after_the_first_step_if_there_will_be_several(
        every_steps, tmp_path):
    trainer, taken = trainer_of(tmp_path, cpu(), **with_checkpoint(every_steps=every_steps)), {}
    read = trainer.read

    def look(number):
        trainer._saves.wait()
        taken[number] = {key: copy.data_ptr() for key, copy in trainer._saves._room.items()}
        return read(number)

    trainer.read = look
    finish(trainer)
    assert not taken[0] and bool(taken[1]) == (every_steps is not None)
    assert taken[1] == taken[5]
    last = {key: copy.data_ptr() for key, copy in trainer._saves._room.items()}
    assert last and (every_steps is None or last == taken[1])


def test_without_memory_for_a_copy_training_waits_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saves, "available_bytes", lambda: 1000)
    trainer = trainer_of(tmp_path, cpu(), **EVERY_2)
    finish(trainer)
    said = capsys.readouterr().out
    assert said.count("training waits while checkpoints are written: a copy would take ") == 1
    assert "bytes of memory, and 1,000 are left" in said
    assert steps_of(tmp_path) == [6] and trainer._saves._room == {}
