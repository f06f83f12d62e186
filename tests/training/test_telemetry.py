"""metrics.jsonl stays one story through kills and resumes; wandb gets the same."""

from __future__ import annotations

import json
import math

import pytest

from gpt.configuration import LogConfig
from gpt.training.telemetry import RunLog


def steps(path):
    return [(line["event"], line["step"]) for line in
            map(json.loads, (path / "metrics.jsonl").read_text().splitlines())]


def test_lines_beyond_the_checkpoint_and_torn_lines_are_dropped_on_resume(tmp_path):
    log = RunLog(tmp_path, LogConfig(), {}, 0)
    for step in (1, 2, 3):
        log.event("train", step, loss=1.0)
        if step == 2:
            log.event("save", 2)
            log.event("eval", 2, val_loss=1.0)
            log.sample(2, "a", "b")
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')

    RunLog(tmp_path, LogConfig(), {}, 2).close()

    assert steps(tmp_path) == [("train", 1), ("train", 2), ("save", 2)]
    assert (tmp_path / "samples.jsonl").read_text() == ""


def test_what_is_not_finite_is_null_so_that_every_line_is_json(tmp_path):
    def strictly(constant: str) -> None:
        raise ValueError(constant)

    log = RunLog(tmp_path, LogConfig(), {}, 0)
    log.event("train", 1, loss=math.inf, grad_norm=math.nan, lr=-math.inf, tokens=2**70, mfu=0.0,
              path="a")
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=strictly) == {
        "event": "train", "step": 1, "loss": None, "grad_norm": None, "lr": None, "tokens": 2**70,
        "mfu": 0.0, "path": "a"}


def test_wandb_works_offline_and_keeps_its_run_through_a_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ids = []
    for resumed_at in (0, 1):
        log = RunLog(tmp_path, LogConfig(wandb="offline"), {"run": {"seed": 1}}, resumed_at)
        ids.append(log._wandb.id)
        log.event("train", resumed_at + 1, loss=1.0, lr=0.1)
        log.event("eval", resumed_at + 1, val_loss=2.0)
        log.close()
    assert ids[0] == ids[1]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("line", ['{"step": null}', '{"step": [1]}', "[" * 100_000, '{"step": "a"}',
                                  "1", "null", "\\ud800"])
def test_a_line_that_is_none_is_dropped_and_ends_nothing(line, tmp_path):
    sound = '{"event": "train", "step": 1, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_text(f"{sound}{line}\n")
    RunLog(tmp_path, LogConfig(), {}, 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == sound
