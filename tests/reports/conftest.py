"""Runs to report on: one that was trained and fine-tuned, and a browser."""

from __future__ import annotations

import json

import pytest

from tests.browser import started
from tests.tiny import run_script

SMALL = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=48",
         "train.batch_size=4", "run.dtype=float32"]
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with a dataset, a run, and one that was fine-tuned from it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "corpus").mkdir()
    for i in range(30):
        (folder / f"corpus/{i}.txt").write_text(f"Document {i}: à la carte, {i * i}.\n" * 20)
    pairs = [{"prompt": f"{i} plus {i} is ", "completion": str(2 * i)} for i in range(40)]
    (folder / "task.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    said = {}
    for name, script, *words in (
            ("data", "data/prepare.py", "corpus", "tokenizer=bpe:300", "out=data/c"),
            ("base", "train.py", "data.dataset=data/c", "run.name=base", "train.steps=60",
             "eval.every_steps=20", "log.samples_every_steps=20",
             'log.sample_prompts=["Doc", "<b>"]', *SMALL),
            ("tuned", "finetune.py", "finetune.from=runs/base", "finetune.data=task.jsonl",
             "run.name=tuned", "train.epochs=2", "train.batch_size=4", "run.dtype=float32"),
            ("quiet", "train.py", "data.dataset=data/c", "run.name=quiet", "train.steps=2",
             "log.report=false", *SMALL)):
        done = run_script(script, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    folder_said[folder] = said
    return folder


folder_said = {}


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with started(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver
