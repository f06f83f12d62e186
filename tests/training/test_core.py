"""The CORE metric while training: when it is measured, told, planned and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpt
import train
from data import prepare
from gpt.configuration import EvalConfig
from gpt.errors import UserError
from gpt.evaluation import Bundle, core_score
from gpt.training.core import TIMED_QUESTIONS, core_measure, core_work
from tests.evaluation.bundles import write_bundle
from tests.tiny import ROOT

SMALL = ["data.dataset=data", "run.name=run", "run.dtype=float32", "model.n_layer=1",
         "model.n_head=2", "model.n_embd=32", "model.block_size=64", "train.batch_size=4",
         "train.steps=6", "eval.every_steps=null", "optim.warmup_steps=0", "run.device=cpu",
         "eval.core_bundle=eval_bundle", "eval.core_questions=3"]


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text((ROOT / "README.md").read_text())
    prepare.main(["text.txt", "tokenizer=byte", "out=data"])
    write_bundle(Path("eval_bundle"))
    return tmp_path


def told() -> list[dict[str, Any]]:
    lines = Path("runs/run/metrics.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == "core"]


def test_it_is_measured_every_so_many_steps_and_at_the_end(corpus, capsys):
    train.main([*SMALL, "eval.core_every_steps=4"])
    first, last = told()
    assert (first["step"], last["step"]) == (4, 6)
    lm = gpt.load("runs/run", device="cpu", dtype="float32")
    found = core_score(lm, Bundle(Path("eval_bundle")), 3)
    assert last["core"] == pytest.approx(found.core)
    assert (last["core_low"], last["core_high"]) == (found.interval.low, found.interval.high)
    assert {name for name in last if name.startswith("core_")} == {
        "core_low", "core_high", *(f"core_{task.label}" for task in found.tasks)}
    assert f"step 6: CORE {found.core:.4f} (95 of 100 draws: " in capsys.readouterr().out
    assert f"CORE {found.core:.4f}" in Path("runs/run/train.log").read_text()


def test_it_changes_nothing_of_what_is_learned(corpus):
    train.main([*SMALL, "eval.core_every_steps=1", "model.dropout=0.1"])
    with_core = Path("runs/run/metrics.jsonl").read_text()
    train.main([*SMALL, "run.name=plain", "eval.core_bundle=null", "model.dropout=0.1"])
    losses = [[event["loss"] for line in text.splitlines()
               if (event := json.loads(line))["event"] == "train"]
              for text in (with_core, Path("runs/plain/metrics.jsonl").read_text())]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_without_a_number_of_steps_it_is_measured_at_the_end_and_again_where_a_run_goes_on(corpus):
    train.main(SMALL)
    assert [event["step"] for event in told()] == [6]
    train.main([*SMALL, "train.steps=8", "eval.core_every_steps=6"])
    assert [event["step"] for event in told()] == [6, 8]


def test_a_run_that_gives_up_where_it_was_measured_is_not_measured_again(corpus):
    train.main([*SMALL, "train.steps=30", "eval.every_steps=2", "eval.patience=1",
                "eval.core_every_steps=2", "optim.lr=1e-30", "optim.muon_lr=1e-30"])
    steps = [event["step"] for event in told()]
    assert steps == sorted(set(steps)) and steps[-1] < 30


def test_a_dry_run_counts_its_time(corpus, capsys):
    lm: Any = None  # not asked, where nothing is done
    config = EvalConfig(core_bundle="eval_bundle", core_every_steps=2, core_questions=6)
    (work,) = core_work(config, lm)
    assert work.every_steps == (2,)
    assert work.share == pytest.approx((3 * TIMED_QUESTIONS + 4) / (6 + 6 + 4 + 6))
    assert core_work(EvalConfig(), lm) == [] and core_measure(EvalConfig(), lm) is None
    train.main([*SMALL, "eval.core_every_steps=2", "--dry-run"])
    assert "to evaluate and save (measured)" in capsys.readouterr().out


@pytest.mark.parametrize(("fields", "message"), [
    (["eval.core_bundle=none"], "none is no bundle of CORE: it has no core.yaml"),
    (["eval.core_bundle=null", "eval.core_every_steps=2"],
     "core_every_steps needs core_bundle, the folder of the bundle")])
def test_what_cannot_be_measured_is_refused_before_anything_is_made(corpus, fields, message):
    with pytest.raises(UserError, match=message):
        train.main([*SMALL, *fields])
    assert not Path("runs").exists()
