"""A run that was killed or stopped and repeated ends in the same bits as one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import train
from gpt.runs import checkpoint
from tests.tiny import call_main, command_line, run_script, script_environment

SETTINGS = ["data.dataset=data", "model.n_layer=2", "model.n_head=2", "model.n_embd=32",
            "model.block_size=32", "model.dropout=0.1", "train.batch_size=8",
            "train.micro_batch_size=3", "eval.every_steps=20", "checkpoint.every_steps=7",
            "run.dtype=float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small dataset, and a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("resume")
    text = "".join(random.Random(0).choices("the quick brown fox\n", k=20_000))
    (folder / "text.txt").write_text(text)
    done = run_script("data/prepare.py", "text.txt", "tokenizer=char", "out=data", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run_script("train.py", *SETTINGS, "train.steps=60", "run.name=undisturbed", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run_here(folder, monkeypatch, capsys):
    """train.py in this process, which saves the seconds that a process takes to begin."""
    monkeypatch.chdir(folder)

    def run(*settings: str) -> tuple[int, str, str]:
        return call_main(train, *SETTINGS, *settings, monkeypatch=monkeypatch, capsys=capsys)

    return run


def outcome(run: Path) -> dict[str, object]:
    """Final weights, optimizer state, and every number logged but clocks and memory.

    Lines that note a save are left out: a kill may fall between a save and its line.
    """
    last = max((run / "checkpoints").glob("step-*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: line[k] for k in ("event", "step", "tokens", "loss", "lr", "grad_norm", "val_loss",
                                  "val_bits_per_byte") if k in line}
            for line in lines if line["event"] != "save"]
    tensors = {f"{name}:{key}": value.tobytes()
               for name in ("model", "optimizer")
               for key, value in load_file(last / f"{name}.safetensors").items()}
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    return {"checkpoint": last.name, "best": best, "logged": kept, **tensors}


def test_a_run_killed_again_and_again_ends_in_the_same_bits(folder):
    command = [*SETTINGS, "train.steps=60", "run.name=killed"]
    run = folder / "runs" / "killed"
    draw = random.Random(1)
    kills = 0
    for steps in (9, 17, 30, 44):  # let it come so far, then a random moment further
        process = subprocess.Popen(command_line("train.py", *command), cwd=folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=script_environment())
        wait_for_step(run / "metrics.jsonl", steps, process)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    done = run_script("train.py", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert kills >= 3 and "continuing from" in done.stdout
    assert outcome(run) == outcome(folder / "runs" / "undisturbed")
    assert not list((run / "checkpoints").glob("*.tmp-*"))


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f'"train", "step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)


def test_another_seed_ends_in_other_bits(folder, run_here):
    code, _, stderr = run_here("train.steps=60", "run.name=other", "run.seed=2")
    assert code == 0, stderr
    assert outcome(folder / "runs/other") != outcome(folder / "runs/undisturbed")


def test_a_signal_saves_leaves_with_75_and_the_same_command_continues(folder):
    command = [*SETTINGS, "train.steps=60", "run.name=stopped"]
    run = folder / "runs" / "stopped"
    process = subprocess.Popen(command_line("train.py", *command), cwd=folder, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=script_environment())
    wait_for_step(run / "metrics.jsonl", 11, process)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate()[1]
    assert process.returncode == 75
    assert "stopped by SIGTERM at step" in stderr and "to continue: python" in stderr
    done = run_script("train.py", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(folder / "runs" / "undisturbed")


def test_a_finished_run_is_left_alone_and_can_be_extended(folder, run_here):
    before = outcome(folder / "runs" / "undisturbed")
    code, out, _ = run_here("run.name=undisturbed", "train.steps=60")
    assert code == 0 and "is complete at step 60" in out
    assert outcome(folder / "runs" / "undisturbed") == before


def test_resume_never_and_a_path_do_what_they_say(folder, run_here):
    code, _, stderr = run_here("train.steps=60", "run.name=undisturbed", "run.resume=never")
    assert code == 2 and "holds a run at step-00000060" in stderr
    source = sorted((folder / "runs/undisturbed/checkpoints").glob("step-*"))[-2]
    code, _, stderr = run_here("train.steps=60", "run.name=branch", f"run.resume={source}")
    assert code == 0, stderr
    branch, trunk = outcome(folder / "runs/branch"), outcome(folder / "runs/undisturbed")
    assert {k: v for k, v in branch.items() if ":" in k} == {
        k: v for k, v in trunk.items() if ":" in k}
    code, _, stderr = run_here("train.steps=60", "run.name=undisturbed", f"run.resume={source}")
    assert code == 2 and "would be lost" in stderr


def test_a_damaged_newest_checkpoint_costs_a_few_steps_and_is_written_anew(folder, run_here):
    assert run_here("run.name=damaged", "train.steps=30")[0] == 0
    newest = folder / "runs/damaged/checkpoints/step-00000030"
    before = outcome(folder / "runs/damaged")
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-5] ^= 4
    (newest / "model.safetensors").write_bytes(data)
    assert checkpoint.damage(newest) == ["model.safetensors is damaged"]

    code, out, stderr = run_here("run.name=damaged", "train.steps=30")

    assert code == 0 and "model.safetensors is damaged" in stderr
    assert "continuing from runs/damaged/checkpoints/step-00000028" in out
    assert checkpoint.damage(newest) == []
    assert outcome(folder / "runs/damaged") == before


def test_a_checkpoint_of_another_model_is_refused(folder, run_here):
    source = max((folder / "runs/undisturbed/checkpoints").glob("step-*"))
    code, _, stderr = run_here("train.steps=60", "run.name=wrong", "model.n_layer=1",
                               f"run.resume={source}")
    assert code == 2 and "holds another architecture" in stderr
