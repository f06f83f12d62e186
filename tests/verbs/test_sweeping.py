"""Grids of runs: what they are called, that each is what it would be alone, and going on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import train
from data import prepare
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.verbs import sweeping
from gpt.verbs.sweeping import MOST, grid_of, run_name, split_values
from tests.tiny import ROOT, call_main

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


FAKE = """
import json, pathlib, signal, sys, time
fields = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(fields["run.out_dir"], fields["run.name"])
run.mkdir(parents=True, exist_ok=True)
seed = int(fields["run.seed"])
print("seed", seed)
if seed == 3:
    sys.exit("seed 3 is no good")
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
with (run / "metrics.jsonl").open("a") as file:
    told = {"event": "eval", "step": 2, "val_loss": 1.0 + seed, "started": time.time()}
    file.write(json.dumps(told) + "\\n")
time.sleep(float(fields["train.max_minutes"]))
with (run / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"event": "end", "step": 2, "ended": time.time()}) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """In place of train.py, a script that waits and tells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(FAKE)
    monkeypatch.setattr(sweeping, "SCRIPTS", tmp_path)
    return tmp_path / "runs/try-sweep"


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_runs_that_fail_do_not_end_the_others_and_devices_have_one_run_each(fake, monkeypatch,
                                                                            capfd):
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: (write(text), time.sleep(0.01))[0])
    code, out, err = sweep(monkeypatch, capfd, "run.seed=2,1,3,4", "train.max_minutes=0.3",
                           "--devices=0,1")
    assert code == 1 and "1 of 4 runs failed: seed-3;" in err
    assert "seed 3 is no good" in (fake / "seed-3.log").read_text() and "seed 1\n" not in out
    table = out[out.index("seed  val loss"):].splitlines()
    assert [row.split()[0] for row in table[1:4]] == ["1", "2", "4"]
    spans = sorted((events(fake / f"seed-{seed}")[0]["started"],
                    events(fake / f"seed-{seed}")[1]["ended"]) for seed in (1, 2, 4))
    assert spans[1][0] < spans[0][1]  # side by side
    assert spans[2][0] > min(spans[0][1], spans[1][1])  # and no more than two
    begun = [re.fullmatch(r"runs/try-sweep/seed-(\d) on GPU ([01])", line)
             for line in out.splitlines() if " on GPU " in line]
    assert sorted(line[1] for line in begun) == ["1", "2", "3", "4"]  # each on a line of its own
    assert {line[2] for line in begun} == {"0", "1"}


def test_a_signal_stops_the_run_and_the_sweep_and_the_same_command_goes_on(fake, monkeypatch,
                                                                           capfd):
    def interrupt() -> None:
        told = fake / "seed-1/metrics.jsonl"
        while not (told.is_file() and told.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    handler = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    code, out, err = sweep(monkeypatch, capfd, "run.seed=1,2", "train.max_minutes=20")
    assert code == 75, err
    assert "stopped by SIGINT; what was learned is saved; the same command goes on" in err
    assert [event["event"] for event in events(fake / "seed-1")] == ["eval"]
    assert not (fake / "seed-2").exists()
    code, out, _ = sweep(monkeypatch, capfd, "run.seed=1,2", "train.max_minutes=0.01")
    assert code == 0 and out.count(" done") == 2
    assert signal.getsignal(signal.SIGINT) is handler
