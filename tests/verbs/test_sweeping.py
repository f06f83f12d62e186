"""Grids of runs: what they are called, that each is what it would be alone, and going on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from data import prepare
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.verbs.sweeping import MOST, grid_of, run_name, split_values
from tests.tiny import ROOT, call_main, script_environment

SMALL = ["data.dataset=data", "model.n_layer=1", "model.n_head=2", "model.n_embd=32",
         "model.block_size=32", "train.batch_size=4", "eval.every_steps=null", "run.device=cpu",
         "run.dtype=float32", "optim.warmup_steps=0", "log.report=false"]


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text((ROOT / "README.md").read_text())
    prepare.main(["text.txt", "tokenizer=byte", "out=data"])
    return tmp_path


def test_values_are_separated_by_commas_outside_of_brackets_and_quotes():
    assert split_values("1e-3,3e-3") == ["1e-3", "3e-3"]
    assert split_values("[0.9, 0.95],[0.8,0.9]") == ["[0.9, 0.95]", "[0.8,0.9]"]
    assert split_values("\"a,b\",'c'") == ['"a,b"', "'c'"]
    assert split_values("{kind: linear, factor: 2}") == ["{kind: linear, factor: 2}"]


def test_runs_are_called_by_their_own_values():
    assert run_name({"optim.lr": "0.001", "train.batch_size": "8"}) == "lr-0.001_batch_size-8"
    assert run_name({"optim.betas": "[0.9, 0.95]"}) == "betas-_0.9_0.95"
    script, folder, tries = grid_of(["run.name=a", "data.dataset=x", "optim.lr=0.1,0.2",
                                     "model.n_layer=1,2,3"])
    assert (script, folder, len(tries)) == ("train.py", Path("runs/a-sweep"), 6)
    assert tries[4].name == "lr-0.2_n_layer-2"
    assert tries[4].words == ["run.name=a", "data.dataset=x", "optim.lr=0.2", "model.n_layer=2",
                              "run.out_dir=runs/a-sweep", "run.name=lr-0.2_n_layer-2"]
    assert grid_of(["finetune.from=a", "finetune.data=b", "run.seed=4,8"])[0] == "finetune.py"


@pytest.mark.parametrize(("words", "message"), [
    (["data.dataset=x"], "a sweep needs a field with several values"),
    (["data.dataset=x", "optim.lr=0.1,zero"], r"optim\.lr: input should be a valid number"),
    (["data.dataset=x", "optim.rate=0.1,0.2"], r"there is no field optim\.rate"),
    (["data.dataset=x", "optim.lr=0.1,0.1"], "two runs of this grid would be called lr-0.1"),
    (["none.yaml", "optim.lr=0.1,0.2"], r"there is no configuration file none\.yaml"),
    (["data.dataset=x", f"run.seed={','.join(map(str, range(MOST + 1)))}"], "257 runs; at most")])
def test_mistakes_are_told_before_anything_is_trained(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        grid_of(words)


def losses(run: Path) -> list[float]:
    return [event["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()
            if (event := json.loads(line))["event"] == "train"]


def sweep(monkeypatch, capfd, *words):
    return call_main(verbs, "sweep", *SMALL, "run.name=try", *words, monkeypatch=monkeypatch,
                     capsys=capfd)


def test_a_grid_is_trained_told_and_gone_on_with(corpus, monkeypatch, capfd):
    grid = ["optim.lr=0.01,0.0001", "train.steps=12"]
    code, out, _ = sweep(monkeypatch, capfd, *grid, "--dry-run")
    assert code == 0 and out.count("python train.py data.dataset=data") == 2
    assert not Path("runs").exists()
    code, out, err = sweep(monkeypatch, capfd, *grid)
    assert code == 0, err
    folder = Path("runs/try-sweep")
    table = out[out.index("    lr  "):].splitlines()
    assert table[0].split()[:3] == ["lr", "val", "loss"] and table[1].split()[0] == "0.01"
    assert table[2].split()[0] == "0.0001" and table[1].split()[-1] == "done"
    assert (folder / "report.html").is_file() and f"report: {folder}/report.html" in out
    train.main([*SMALL, "run.name=alone", "optim.lr=0.01", "train.steps=12"])
    assert losses(folder / "lr-0.01") == losses(Path("runs/alone"))
    code, out, _ = sweep(monkeypatch, capfd, *grid)
    assert code == 0 and out.count("is complete at step 12") == 2


def test_runs_that_fail_do_not_end_the_others(corpus, monkeypatch, capfd):
    Path("runs/try-sweep/seed-1").mkdir(parents=True)
    (Path("runs/try-sweep/seed-1") / "identity.json").write_text("{")
    code, out, err = sweep(monkeypatch, capfd, "run.seed=1,2", "train.steps=3", "--devices=0,1")
    assert code == 1 and "1 of 2 runs failed: seed-1;" in err
    assert len(losses(Path("runs/try-sweep/seed-2"))) == 3
    assert "identity.json" in Path("runs/try-sweep/seed-1.log").read_text()
    assert "seed-1 on GPU" in out and "seed-2 on GPU" in out


def test_a_signal_stops_the_run_and_the_sweep_and_the_same_command_goes_on(corpus):
    command = [sys.executable, "-m", "gpt", "sweep", *SMALL, "run.name=try", "optim.lr=0.01,0.001",
               "train.steps=700"]
    first = subprocess.Popen(command, env=script_environment(), stderr=subprocess.PIPE, text=True,
                             stdout=subprocess.DEVNULL)
    metrics, ends = Path("runs/try-sweep/lr-0.01/metrics.jsonl"), time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < ends:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert "stopped by SIGINT; what was learned is saved; the same command goes on" in err
    done = len(losses(metrics.parent))
    assert 0 < done < 700 and not Path("runs/try-sweep/lr-0.001").exists()
    second = subprocess.run(command, env=script_environment(), capture_output=True, text=True,
                            timeout=120)
    assert second.returncode == 0, second.stderr
    assert "continuing from" in second.stdout
    assert [len(losses(Path(f"runs/try-sweep/lr-{lr}"))) for lr in ("0.01", "0.001")] == [700] * 2
