"""From a task to a run: what "auto" became, and what a continued run must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from data import prepare
from tests.tiny import call_main

SMALL = ["data.dataset=data", "model.n_layer=1", "model.n_head=2", "model.n_embd=32",
         "model.block_size=32", "run.dtype=float32", "eval.every_steps=null"]


@pytest.fixture()
def run(tmp_path, monkeypatch, capsys):
    """train.py in a folder with a dataset; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    arguments = ("text.txt", "tokenizer=byte", "out=data", "val_fraction=0.1")
    assert call_main(prepare, *arguments, monkeypatch=monkeypatch, capsys=capsys)[0] == 0

    def started(*overrides: str) -> tuple[int, str, str]:
        return call_main(train, *SMALL, *overrides, monkeypatch=monkeypatch, capsys=capsys)

    return started


def identity(name: str) -> dict[str, object]:
    return json.loads(Path(f"runs/{name}/identity.json").read_text())


@pytest.mark.auto
def test_a_run_says_and_keeps_what_auto_became(run):
    code, told, _ = run("train.steps=6", "run.name=small")  # (2 · 6)² tokens: one sequence
    assert code == 0
    assert "steps of 1 sequences" in told and "adamw at 0.004, beta2 0.999" in told
    assert "muon" not in told
    assert (identity("small")["train.batch_size"], identity("small")["optim.name"]) == (1, "adamw")
    code, told, _ = run("train.steps=2", "train.batch_size=6", "run.name=large")
    assert code == 0
    assert "muon at 0.02 for matrices, adamw at 0.04, beta2 0.9983" in told  # 6 · 32 tokens: enough
    assert identity("large")["optim.name"] == "muon"


def test_a_longer_budget_continues_with_the_batch_size_that_the_run_began_with(run):
    assert run("train.steps=6")[0] == 0
    assert run("train.steps=60", "run.name=other")[0] == 0
    assert identity("other")["train.batch_size"] == 8  # 2 · (2 · 60) tokens
    code, told, error = run("train.steps=60")
    assert code == 0, error
    assert "steps of 1 sequences" in told and "continuing from" in told
    assert identity("run")["train.batch_size"] == 1


@pytest.mark.parametrize(("change", "told"), [
    ("optim.name=muon", "optim.name: adamw there, muon asked"),
    ("optim.ema_half_life=100", "optim.ema_half_life: None there, 100 asked"),
    ("train.batch_size=4", "train.batch_size: 2 there, 4 asked")])
def test_a_run_is_not_continued_with_another_way_of_learning(run, change, told):
    first = ["optim.name=adamw", "train.batch_size=2", "train.steps=2"]
    assert run(*first)[0] == 0
    code, _, error = run(*first, "train.steps=4", change)
    assert code == 2 and told in error
    assert run(*first, "train.steps=4", "optim.lr=0.001")[0] == 0  # that may change


def test_branching_off_with_another_optimizer_is_refused_rather_than_begun_without_memory(run):
    assert run("optim.name=adamw", "train.batch_size=2", "train.steps=2", "run.name=a")[0] == 0
    branch = ["train.batch_size=2", "train.steps=4", "run.name=b", "run.resume=runs/a"]
    code, _, error = run("optim.name=muon", *branch)
    assert code == 2 and "trained with another optimizer: it has no momentum" in error
    code, _, error = run("optim.name=adamw", *branch, "run.name=c")
    assert code == 0, error


def test_learning_rates_of_every_group_are_logged(run):
    assert run("optim.name=muon", "train.batch_size=2", "train.steps=3",
               "optim.warmup_steps=0")[0] == 0
    lines = [json.loads(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "train")
    assert step["lr"] == step["lr_embeddings"] == step["lr_output"] == step["lr_vectors"] == 0.04
    assert step["lr_matrices"] == 0.02


@pytest.mark.auto
def test_a_dry_run_trains_nothing_and_tells_time_and_memory(run):
    code, told, _ = run("--dry-run", "train.steps=50", "train.batch_size=2")
    assert code == 0
    for figure in ("parameters ", "FLOPs per token ", "3,200 in 50 steps of 64",
                   "MiB (measured)", "to evaluate and save (measured)"):
        assert figure in told
    assert not Path("runs").exists()
