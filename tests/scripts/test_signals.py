"""Signals that ask for a stop, from the first moment of a process on."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tiny import as_in_a_terminal, command_line, run_script, script_environment

SETTINGS = ("data.dataset=data", "model.n_layer=2", "model.n_head=2", "model.n_embd=32",
            "model.block_size=32", "train.batch_size=8", "run.dtype=float32", "run.compile=false",
            "eval.every_steps=30", "checkpoint.every_steps=20", "log.samples_every_steps=25",
            "log.report=false")
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(),
                                reason="reads Linux's /proc")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    text = "".join(random.Random(0).choices("the quick brown fox\n", k=20_000))
    (folder / "text.txt").write_text(text)
    return folder


def stopped(folder, seconds, number, script, *words):
    """(exit code, the last line of stderr) of a command that is stopped so soon after it began to
    listen: before, Python itself is being started."""
    with subprocess.Popen(command_line(script, *words), cwd=folder, text=True, bufsize=1,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          env=script_environment(), preexec_fn=as_in_a_terminal) as process:
        while not listens(process.pid, signal.SIGTERM):  # to SIGINT Python itself does
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said.strip().splitlines()[-1] if said.strip() else ""


def listens(process, number):
    """Whether a process has a handler of its own for a signal."""
    told = Path(f"/proc/{process}/status").read_text()
    caught = int(told.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "seconds"), [
    pytest.param(number, seconds, id=f"{number.name}-{seconds}",
                 marks=[pytest.mark.slow] * (number is not SIGNALS[0] and seconds in (0.3, 1.8)))
    for number in SIGNALS for seconds in (0.0, 0.3, 0.9, 1.8, 3.0)])
def test_whenever_training_is_stopped_the_same_command_goes_on(folder, number, seconds):
    if not (folder / "data").exists():
        assert run_script("data/prepare.py", "text.txt", "tokenizer=char", "out=data",
                          cwd=folder).returncode == 0
    name = f"run.name={number.name}-{seconds}"
    code, last = stopped(folder, seconds, number, "train.py", *SETTINGS, "train.steps=100000", name)
    assert code == 75, last
    assert f"stopped by {number.name}" in last
    assert not [*folder.glob("runs/*/checkpoints/*.tmp-*")]


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0])
def test_a_preparation_is_stopped_like_a_run(folder, seconds):
    out = f"out=data-{seconds}"
    code, last = stopped(folder, seconds, signal.SIGTERM, "data/prepare.py", "text.txt",
                         "tokenizer=bpe:400", out)
    assert code in (75, 0), last
    done = run_script("data/prepare.py", "text.txt", "tokenizer=bpe:400", out, cwd=folder)
    assert done.returncode == 0, done.stderr
