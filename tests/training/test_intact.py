"""A dataset that is not what it was is refused while training begins."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

import train
from data.preparation import prepare
from data.recipe import Recipe
from gpt.errors import UserError
from gpt.shards import changed_file
from gpt.training import intact
from gpt.training.intact import Intact
from tests.tiny import call_main


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(random.Random(0).choices("the quick brown fox\n", k=9000)))
    prepare(Recipe.model_validate({"name": "t", "sources": ["text.txt"], "tokenizer": "char",
                                   "out": "data"}))
    return Path("data")


def spoil(file):
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "train-00000.offsets"])
def test_a_file_that_changed_is_told_with_both_hashes(dataset, name):
    assert changed_file(dataset) is None
    spoil(dataset / name)
    said = changed_file(dataset)
    assert said.startswith(f"data/{name} has changed since the dataset was prepared: its SHA-256 "
                           "was ")
    assert said.endswith("…; prepare the dataset again") and "… and is " in said


def test_a_run_is_refused_before_its_first_step(dataset, monkeypatch, capsys):
    spoil(dataset / "train-00000.bin")
    code, _, err = call_main(train, "data.dataset=data", "model.n_layer=1", "model.n_head=2",
                             "model.n_embd=32", "model.block_size=32", "train.batch_size=4",
                             "train.steps=6", "run.name=a", "run.compile=false",
                             monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "error: data/train-00000.bin has changed since" in err
    assert '"event": "train"' not in Path("runs/a/metrics.jsonl").read_text()


def test_what_takes_longer_is_told_at_the_step_at_which_it_is_known(monkeypatch):
    monkeypatch.setattr(intact, "PATIENCE", 0.01)
    known, waited = threading.Event(), []
    read = Intact(lambda step: -step, lambda: known.wait(10) and "it has changed")
    join = read._thread.join
    monkeypatch.setattr(read._thread, "join", lambda seconds: (waited.append(seconds),
                                                               join(seconds)))
    assert [read.step(step) for step in range(3)] == [0, -1, -2]
    assert waited == [0.01, 0, 0]
    known.set()
    join()
    with pytest.raises(UserError, match="it has changed"):
        read.step(3)


def test_a_file_that_cannot_be_read_is_told_too():
    def fail():
        raise OSError(5, "Input/output error", "data/train-00000.bin")

    with pytest.raises(UserError, match=r"Input/output error: 'data/train-00000.bin'"):
        Intact(lambda step: step, fail).step(0)
    assert Intact(lambda step: step, lambda: None).step(0) == 0
