"""The same command on several ranks is the same run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.parallel.runs import Outcome, assert_same_run, train
from tests.tiny import run_script

PRETRAIN = ("data.dataset=data/text", "model.block_size=32", "model.n_layer=2", "model.n_head=4",
            "model.n_kv_head=2", "model.n_embd=32", "train.steps=10", "train.batch_size=8",
            "eval.every_steps=5", "eval.max_tokens=600", "optim.warmup_steps=2",
            "checkpoint.every_steps=5", "run.device=cpu", "run.dtype=float32", "run.compile=false")
TUNE = ("finetune.from=runs/base", "finetune.data=task.jsonl", "train.epochs=2",
        "train.batch_size=8", "optim.warmup_steps=2", "run.device=cpu", "run.dtype=float32",
        "run.compile=false", "finetune.val_fraction=0.2", "finetune.answers=4")
KINDS = {
    "adamw": ("train", (*PRETRAIN, "optim.name=adamw", "train.micro_batch_size=2")),
    "muon": ("train", (*PRETRAIN, "optim.name=muon", "train.micro_batch_size=1",
                       "optim.ema_half_life=2000")),
    "isolated": ("train", (*PRETRAIN, "optim.name=adamw", "data.isolate_documents=true",
                           "train.recompute_activations=true")),
    "packed": ("finetune", (*TUNE, "finetune.packing=true", "finetune.max_length=128")),
    "padded": ("finetune", (*TUNE, "train.micro_batch_size=2")),
    "lora": ("finetune", (*TUNE, "finetune.method=lora", "lora.rank=2")),
    "preferences": ("finetune", (*(each.replace("task", "preferences") for each in TUNE),)),
}
LAYOUTS = {
    "DDP 2": (2, ("parallel.replicate=2",)),
    "DDP 4": (4, ("parallel.replicate=4",)),
    "FSDP 2": (2, ("parallel.shard=2",)),
    "FSDP 4": (4, ("parallel.shard=4",)),
    "HSDP 2 x 2": (4, ("parallel.replicate=2", "parallel.shard=2")),
    "TP 2": (2, ("parallel.tensor=2",)),
    "TP 2 x FSDP 2": (4, ("parallel.tensor=2", "parallel.shard=2")),
    "CP 2": (2, ("parallel.context=2",)),
    "CP 2 x FSDP 2": (4, ("parallel.context=2", "parallel.shard=2")),
    "PP 2": (2, ("parallel.pipeline=2",)),
    "PP 2 x FSDP 2": (4, ("parallel.pipeline=2", "parallel.shard=2")),
    "PP 2 x DDP 2": (4, ("parallel.pipeline=2", "parallel.replicate=2")),
    "PP 2 x TP 2": (4, ("parallel.pipeline=2", "parallel.tensor=2")),
    "DDP 2 x TP 2": (4, ("parallel.replicate=2", "parallel.tensor=2")),
    "CP 2 x TP 2": (4, ("parallel.context=2", "parallel.tensor=2")),
    "CP 2 x DDP 2": (4, ("parallel.context=2", "parallel.replicate=2")),
}
SHORT = [("adamw", "TP 2 x FSDP 2"), ("muon", "FSDP 2"), ("packed", "DDP 2"), ("lora", "FSDP 2"),
         ("preferences", "DDP 2")]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a base run, and two tasks."""
    folder = tmp_path_factory.mktemp("parallel")
    draw = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "log", "quick", "brown",
             "and", "then", "slowly"]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(150)]
    (folder / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in texts))
    done = run_script("data/prepare.py", "text.jsonl", "tokenizer=byte", "out=data/text",
                      "val_fraction=0.1", cwd=folder)
    assert done.returncode == 0, done.stderr
    tasks = [{"prompt": " ".join(draw.choices(words, k=draw.randint(1, 6))),
              "completion": " ".join(draw.choices(words, k=draw.randint(1, 20) ** 2 // 40 + 1))}
             for _ in range(48)]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    (folder / "preferences.jsonl").write_text("\n".join(json.dumps(
        {"prompt": each["prompt"], "chosen": each["completion"], "rejected": draw.choice(words)})
        for each in tasks if each["completion"] not in words))
    train(1, "train", folder, *PRETRAIN, "run.name=base", "model.block_size=128")
    return folder


@pytest.fixture(scope="session")
def alone(place: Path) -> dict[str, Outcome]:
    """What one process makes of each kind of run; made when first asked for."""
    return {}


def expected(kind: str, place: Path, alone: dict[str, Outcome]) -> Outcome:
    if kind not in alone:
        script, settings = KINDS[kind]
        alone[kind] = train(1, script, place, *settings, f"run.name=one-{kind}")
    return alone[kind]


def compare(kind: str, layout: str, place: Path, alone: dict[str, Outcome]) -> None:
    ranks, sizes = LAYOUTS[layout]
    script, settings = KINDS[kind]
    name = f"run.name={kind}-{layout}".replace(" ", "-")
    found = train(ranks, script, place, *settings, *sizes, name)
    assert_same_run(found, expected(kind, place, alone), padded=script == "finetune")


@pytest.mark.parametrize(("kind", "layout"), SHORT)
def test_some_layouts_give_the_run_of_one_process(kind, layout, place, alone):
    compare(kind, layout, place, alone)


@pytest.mark.parallel
@pytest.mark.parametrize(("kind", "layout"), [
    (kind, layout) for kind in KINDS for layout in LAYOUTS if (kind, layout) not in SHORT
    and (kind, layout[:2]) != ("preferences", "CP")])
def test_every_layout_gives_the_run_of_one_process(kind, layout, place, alone):
    compare(kind, layout, place, alone)


@pytest.mark.parallel
def test_preferences_are_not_cut_and_it_is_said(place):
    with pytest.raises(AssertionError, match="preferences compare whole answers"):
        train(2, "finetune", place, *KINDS["preferences"][1], "parallel.context=2",
              "run.name=cut")


def test_another_seed_is_another_run(place, alone):
    script, settings = KINDS["adamw"]
    found = train(2, script, place, *settings, "run.seed=1", "run.name=another")
    with pytest.raises(AssertionError):
        assert_same_run(found, expected("adamw", place, alone))
