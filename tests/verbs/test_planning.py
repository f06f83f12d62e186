"""python -m gpt plan: what it measures, tells and writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import train
from data import prepare
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.planning import plan as planning
from gpt.training import plan as timing
from tests.tiny import call_main

SMALL = ["model.block_size=32", "eval.max_tokens=512", "run.dtype=float32"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "PILOT_STEPS", 4)
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.02)
    Path("text.txt").write_text("".join(f"{i} bottles of beer on the wall\n" for i in range(4000)))
    prepare.main(["text.txt", "tokenizer=byte", "out=data/beer"])
    return tmp_path


@pytest.fixture
def plan(folder, monkeypatch, capsys):
    def called(*words):
        return call_main(verbs, "plan", *words, monkeypatch=monkeypatch, capsys=capsys)
    return called


def test_a_plan_is_told_and_written_and_train_py_takes_it(plan, monkeypatch, capsys):
    code, told, tried = plan("data/beer", "--tokens", "40000", *SMALL)
    assert code == 0 and 1 <= tried.count("tried ") <= 3
    values = yaml.safe_load(Path("plan-beer.yaml").read_text())
    assert values["model"]["block_size"] == 32 and values["run"] == {"dtype": "float32"}
    steps, batch = values["train"]["steps"], values["train"]["batch_size"]
    assert steps * batch * 32 == pytest.approx(40000, rel=0.03)
    assert {"name", "lr", "muon_lr", "warmup_steps"} <= values["optim"].keys()
    head = [line[2:] for line in Path("plan-beer.yaml").read_text().splitlines()
            if line.startswith("# ")]
    for line in told.splitlines()[:-1]:
        assert line in head
    assert "python train.py plan-beer.yaml" in told.splitlines()[-1]
    assert f"{steps:,} steps of {batch} x 32" in told and "nats per token" in told
    code, _, err = call_main(train, "plan-beer.yaml", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    lines = [json.loads(line) for line in Path("runs/plan-beer/metrics.jsonl").read_text()
             .splitlines()]
    assert lines[-1]["step"] == steps
    optimizer = next(line for line in head if line.startswith("plan "))
    assert f"muon at {values['optim']['muon_lr']:.3g} for matrices" in optimizer
    assert optimizer.split("; ")[-1] in Path("runs/plan-beer/train.log").read_text()


def test_minutes_are_kept_and_figures_are_json(plan, monkeypatch, capsys):
    code, told, _ = plan("data/beer", "--minutes", "0.13", "--json", "-o", "mine.yaml", *SMALL)
    figures = json.loads(told)
    assert code == 0 and 0.9 * 7.8 < figures["seconds"] <= 7.8
    assert figures["file"] == "mine.yaml" and Path("mine.yaml").is_file()
    assert figures["tokens"] == figures["steps"] * figures["batch_size"] * 32
    loss = figures["val_loss"]
    assert 0 <= loss["low"] < loss["loss"] < loss["high"]
    bits = figures["val_bits_per_byte"]["loss"] / loss["loss"]
    assert bits == pytest.approx(1.4427, rel=0.05)  # a byte is a token
    assert 1 <= len(figures["pilots"]) <= 3 and figures["doubts"]
    assert {pilot["layer_parameters"] for pilot in figures["pilots"]} <= {
        figures["layer_parameters"]} and figures["layer_parameters"] < figures["parameters"]
    tried = [pilot["tokens"] for pilot in figures["pilots"]]
    assert tried == sorted(tried)
    assert all(0 < pilot["loss_beside_copier"] <= pilot["loss"] for pilot in figures["pilots"])
    budget = yaml.safe_load(Path("mine.yaml").read_text())["train"]
    assert "steps" not in budget and 0.5 * 0.13 < budget["max_minutes"] + 5 / 60 <= 0.13
    code, _, err = call_main(train, "mine.yaml", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    end = json.loads(Path("runs/mine/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= end["elapsed_seconds"] - 60 * budget["max_minutes"] < 1  # a step more at most


def test_for_a_device_that_is_not_here_data_sheets_say_what_it_takes(plan, monkeypatch):
    monkeypatch.setattr(planning, "PILOT_SECONDS", 0.5)
    code, told, said = plan("data/beer", "--flops", "1e15", "--device", "h100", "--devices", "8",
                            *SMALL)
    assert code == 0 and "8 x H100, not measured" in said
    assert "doubtful" in told and "nothing was measured on that device" in told
    assert "times, and the law has seen 11" in told
    assert "torchrun --nproc-per-node=8 train.py plan-beer.yaml" in told


@pytest.mark.parametrize(("words", "said"), [
    (["data/nothing", "--minutes", "1"], "data/nothing is no prepared dataset: prepare it first"),
    (["data/beer"], "one of the arguments --minutes --flops --tokens is required"),
    (["data/beer", "--minutes", "-1"], "-1 is no number above zero"),
    (["data/beer", "--minutes", "1", "--flops", "2"], "not allowed with"),
    (["data/beer", "other", "--minutes", "1"], "one dataset is planned for, not 2"),
    (["data/beer", "--minutes", "1", "--devices", "2"], "--devices needs --device"),
    (["data/beer", "--minutes", "1", "--devices", "0"], "0 is no whole number from 1 on"),
    (["data/beer", "--flops", "1e12", "--device", "abacus"], "choose from H200, H100"),
    (["data/beer", "--tokens", "1e5", "--memory", "0.001"], "are too little for the smallest"),
    (["data/beer", "--minutes", "0.01", *SMALL], "steps of 2 layers of width 64, and a run has 20"),
    (["data/beer", "--tokens", "1e5", "train.steps=3"], "train.steps is what a plan finds"),
    (["data/beer", "--tokens", "1e5", "model.depht=3"], "there is no field model.depht"),
    (["data/beer", "--tokens", "1e5", "run.device=cuda"], "device=cuda is not available here"),
])
def test_what_cannot_be_planned_is_one_line_and_writes_nothing(plan, words, said):
    code, _, err = plan(*words)
    assert code == 2 and said in err and not Path("plan-beer.yaml").exists()


def test_a_file_that_is_there_is_kept(plan):
    Path("plan-beer.yaml").write_text("mine")
    code, _, err = plan("data/beer", "--minutes", "1")
    assert code == 2 and "plan-beer.yaml is there already" in err
    assert Path("plan-beer.yaml").read_text() == "mine"


def test_without_a_validation_split_there_is_nothing_to_foretell():
    dataset = SimpleNamespace(val=[], folder="data/all")
    with pytest.raises(UserError, match="data/all has no validation split"):
        planning.planned(dataset, None, None, None, {}, print)
