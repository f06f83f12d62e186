"""How long fine-tuning learns from so many examples, and what is said where it was too short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune
from gpt.finetuning import run
from gpt.finetuning.effort import closing_lines, epochs_for, examples_per_step
from gpt.runs import checkpoint
from tests.finetuning.conversations import BYTES
from tests.tiny import call_main, tiny_gpt


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    """finetune.py on so many examples; (exit code, output, errors)"""
    monkeypatch.chdir(tmp_path)
    checkpoint.save_model(tmp_path / "base", tiny_gpt(vocab_size=257, block_size=48), BYTES, "test")

    def tuned(examples: int, *arguments: str) -> tuple[int, str, str]:
        records = [{"prompt": f"{i}+{i}=", "completion": f"{2 * i}."} for i in range(examples)]
        Path("task.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return call_main(finetune, "finetune.from=base", "finetune.data=task.jsonl",
                         "finetune.answers=0", "run.dtype=float32", "run.name=run", *arguments,
                         monkeypatch=monkeypatch, capsys=capsys)
    return tuned


def events(kind: str) -> list[dict]:
    lines = Path("runs/run/metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize(("examples", "epochs", "size"), [
    (5, 10, 4), (62, 10, 4), (90, 10, 8), (300, 10, 16), (320, 9, 16), (400, 8, 32),
    (1000, 3, 16), (1500, 2, 16), (3000, 1, 16), (3200, 1, 32), (100_000, 1, 32)])
def test_few_examples_are_seen_often_in_small_steps_and_many_once(examples, epochs, size):
    assert epochs_for(examples) == epochs
    assert examples_per_step(examples, epochs) == size
    assert size == 4 or examples * epochs / size >= 100


def test_where_the_budget_is_no_number_of_epochs_a_step_has_the_usual_size():
    assert examples_per_step(20, None) == 32


def test_a_small_file_is_learned_in_epochs_that_validation_ends_and_it_is_said(tune):
    code, out, _ = tune(60)
    assert code == 0
    assert ("57 examples: train.epochs=10 and train.batch_size=4, 143 steps in all (few examples "
            "are seen several times, in smaller steps); validated after each epoch, to end after "
            "eval.patience=3 without gain") in out
    assert len(events("train")) == 143 or "eval.patience" in out
    assert [event["step"] for event in events("eval")][:3] == [0, 15, 30]
    again = tune(60)
    assert again[0] == 0 and "is complete at step" in again[1]


@pytest.mark.parametrize(("given", "steps", "evaluated"), [
    ("train.epochs=2", 29, [0, 29]), ("train.steps=3", 3, [0, 3]),
    ("train.batch_size=9", 64, [0, 7, 14]), ("eval.every_steps=7", 143, [0, 7, 14]),
    ("finetune.val_fraction=0", 150, [])])
def test_what_is_given_is_not_chosen(given, steps, evaluated, tune):
    code, out, errors = tune(60, given, "--dry-run")
    assert code == 0, errors
    assert f" in {steps} steps of " in out
    assert ("train.epochs=10" in out) == (not given.startswith("train.") or "batch" in given)
    if steps < 100:
        assert tune(60, given)[0] == 0
        assert [event["step"] for event in events("eval")][:3] == evaluated


def test_a_run_of_before_goes_on_with_the_epoch_that_it_began_with(tune):
    """Whoever repeats an older command finds its run complete, as it was."""
    assert tune(60, "train.epochs=1", "train.batch_size=32", "eval.every_steps=null")[0] == 0
    assert len(events("train")) == 2
    code, out, _ = tune(60)
    assert code == 0 and "is complete at step 2" in out


def test_a_run_of_before_that_had_another_budget_has_the_default_of_before(tune):
    assert tune(60, "train.steps=2", "train.batch_size=32", "eval.every_steps=null")[0] == 0
    code, out, _ = tune(60)
    assert code == 0 and "is complete at step 2" in out


def test_evaluations_that_are_asked_for_stay_where_epochs_are_chosen(tune):
    assert tune(20, "eval.every_steps=7")[0] == 0
    assert [event["step"] for event in events("eval")][:3] == [0, 7, 14]


def write(folder: Path, scores: dict[int, float], losses: list[float]) -> Path:
    lines = [{"event": "eval", "step": step, "val_loss": score} for step, score in scores.items()]
    lines += [{"event": "train", "step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(("scores", "losses", "expected"), [
    ({0: 4.0, 10: 2.0, 20: 1.5}, [3.0] * 20,
     ["the validation loss was still falling (2.000 to 1.500 at step 20): train.epochs=6, with the "
      "same command, goes on learning"]),
    ({0: 4.0, 10: 1.51, 20: 1.5}, [3.0] * 20, []),
    ({0: 4.0, 10: 1.5, 20: 1.6}, [3.0] * 20, []),
    ({0: 4.0, 20: 1.5}, [3.0] * 20, []),
    ({0: 4.0, 2: 3.5}, [4.0, 3.5],
     ["the training loss was still falling (4.000 to 3.500): train.epochs=6, with the same "
      "command, goes on learning"]),
    ({}, [4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.99], [])])
def test_a_run_that_ended_too_early_says_which_option_goes_on(scores, losses, expected, tmp_path):
    from gpt.configuration import FinetuneConfig
    config = FinetuneConfig(finetune={"from": "base", "data": "task.jsonl"}, train={"epochs": 3})
    assert list(closing_lines(write(tmp_path, scores, losses), config, "val_loss")) == expected


def test_what_was_not_finite_is_passed_over_and_large_budgets_are_whole_numbers(tmp_path):
    from gpt.configuration import FinetuneConfig
    config = FinetuneConfig(finetune={"from": "base", "data": "task.jsonl"},
                            train={"tokens": 3_000_000})
    folder = write(tmp_path, {0: 4.0, 5: None, 10: 2.0, 20: 1.5}, [4.0, None, 3.0])
    (line,) = closing_lines(folder, config, "val_loss")
    assert "(2.000 to 1.500 at step 20): train.tokens=6000000, with the same" in line


def test_preferences_are_judged_by_a_figure_that_evaluations_have(tune, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "closing_lines",
                        lambda folder, config, figure: asked.append(figure) or [])
    records = [{"prompt": f"{i}?", "chosen": "yes.", "rejected": "no!"} for i in range(20)]
    Path("pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    code, _, errors = tune(60, "finetune.data=pairs.jsonl", "train.steps=1")
    assert code == 0, errors
    assert asked == ["val_preference_loss"]
    assert all(asked[0] in event for event in events("eval")) and events("eval")


def test_the_option_that_is_named_does_go_on(tune):
    settings = "optim.lr=0.01", "optim.warmup_steps=0", "eval.every_steps=null"
    _, out, _ = tune(60, "train.steps=8", *settings)
    assert "loss was still falling (" in out and "train.steps=16, with the same command" in out
    assert tune(60, "train.steps=16", *settings)[0] == 0
    assert len(events("train")) == 16
