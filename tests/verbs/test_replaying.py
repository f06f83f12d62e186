"""python -m gpt replay: a step that went wrong, taken again by a command."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

import finetune
import gpt.__main__ as verbs
import train
from data.preparation import prepare
from data.recipe import Recipe
from tests.tiny import call_main

MODEL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
         "optim.name=adamw", "optim.warmup_steps=1", "train.batch_size=4", "log.report=false",
         "run.device=cpu", "run.dtype=float32", "run.compile=false")
TOO_FAST = "optim.lr=1e12"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A dataset, preferences, and a run that went wrong after its first step."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "text.txt").write_text("".join(
        random.Random(0).choices("the quick brown fox\n", k=9000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(Recipe.model_validate({"name": "t", "sources": ["text.txt"], "tokenizer": "char",
                                       "out": "data"}))
    return folder


@pytest.fixture
def call(workplace, tmp_path, monkeypatch, capsys):
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda module, *words: call_main(module, *words, monkeypatch=monkeypatch,
                                            capsys=capsys)


def pretrained(call, *settings):
    return call(train, *MODEL, "data.dataset=data", "train.steps=6", *settings)


def replayed(call, run):
    [path] = Path("runs", run, "incidents").iterdir()
    return call(verbs, "replay", path)


def test_a_step_of_pretraining_goes_wrong_again_and_is_looked_into(call):
    code, _, err = pretrained(call, TOO_FAST, "run.name=fast")
    assert code == 1 and "not changed; go on from the start" in err
    code, out, _ = replayed(call, "fast")
    first, *_, last = out.splitlines()
    assert code == 0
    assert first.startswith("runs/fast/incidents/step-0000000") and "the gradient norm" in first
    assert "micro-batch 0, " in out and "(text data: the training split, tokens " in out
    assert last.startswith("now: the loss is ") and "nan" in last


def test_another_outcome_is_told_with_exit_code_1(call):
    pretrained(call, TOO_FAST, "run.name=fast")
    [path] = Path("runs/fast/incidents").iterdir()
    about = path / "incident.json"
    told = about.read_text()
    about.write_text(told.replace('"grad_norm": "nan"', '"grad_norm": "7.0"'))
    code, _, err = replayed(call, "fast")
    assert code == 2 and "incident.json is damaged" in err  # by its hash
    manifest = path / "manifest.json"
    from gpt.files import as_json, read_json, sha256_of
    entries = read_json(manifest)
    entries["files"]["incident.json"] = {"bytes": about.stat().st_size,
                                         "sha256": sha256_of(about)}
    manifest.write_text(as_json(entries))
    code, out, _ = replayed(call, "fast")
    assert code == 1 and "and the gradient norm 7.0" in out.splitlines()[-1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_of_learning_from_preferences_is_replayed_too(call, method):
    pretrained(call, "run.name=base", "optim.lr=1e-3")
    Path("task.jsonl").write_text("".join(
        f'{{"prompt": "the {word}", "chosen": "fox", "rejected": "quick"}}\n'
        for word in ("brown", "quick", "fox", "the") * 5))
    code, _, err = call(finetune, "finetune.from=runs/base", "finetune.data=task.jsonl",
                        "optim.lr=1e30", "run.name=liked", f"finetune.method={method}",
                        "optim.warmup_steps=1", "train.batch_size=4", "train.steps=9",
                        "finetune.answers=0", "log.report=false", "run.device=cpu",
                        "run.dtype=float32")
    assert code == 1 and "the weights were not changed" in err, err
    [rows] = Path("runs/liked/incidents").glob("*/rows.jsonl")
    made_of = [json.loads(line)["from"] for line in rows.read_text().splitlines()]
    assert made_of[0] == made_of[1] and made_of[2] == made_of[3] and made_of[0] != made_of[2]
    code, out, _ = replayed(call, "liked")
    assert code == 0 and "(example task.jsonl" in out


def test_what_is_no_incident_is_refused(call):
    code, _, err = call(verbs, "replay", "data")
    assert code == 2
    assert err.startswith("error: data is no incident: give a folder such as runs/NAME/incidents")
