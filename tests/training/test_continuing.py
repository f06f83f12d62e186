"""Runs that are moved, copied, extended, changed, or end early: what continuing them means."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import finetune
import gpt
import sample
import train
from data import prepare
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.training.cooldown import KEPT, kept_step
from gpt.training.telemetry import RunLog
from tests.tiny import call_main

SETTINGS = ["data.dataset=data", "model.n_layer=1", "model.n_head=2", "model.n_embd=32",
            "model.block_size=32", "train.batch_size=4", "run.dtype=float32", "eval.max_tokens=99",
            "eval.every_steps=null", "checkpoint.every_steps=null", "optim.warmup_steps=2"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    prepare.main(["text.txt", "tokenizer=char", "out=data"])
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """train.py with these arguments: what it said."""
    def trained(*words: str, code: int = 0) -> str:
        told = call_main(train, *words, monkeypatch=monkeypatch, capsys=capsys)
        assert told[0] == code, told[2]
        return told[1] if code == 0 else told[2]
    return trained


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().split("\n")
            if line]


def steps(name: str) -> list[int]:
    return sorted(checkpoint.steps_in(Path("runs") / name / "checkpoints"))


def weights(name: str, step: int) -> torch.Tensor:
    model = checkpoint.load_model(Path(f"runs/{name}/checkpoints/step-{step:08d}"))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_runs_config_means_the_folder_that_it_lies_in(run, folder, monkeypatch):
    run(*SETTINGS, "run.name=first", "train.steps=4")
    shutil.copytree("runs/first", "runs/copy")
    before = Path("runs/first/metrics.jsonl").read_text()
    Path("runs/first").rename("runs/renamed")
    Path("elsewhere").mkdir()
    run("runs/renamed/config.yaml", "train.steps=6")
    assert steps("renamed") == [4, 6] and not Path("runs/first").exists()
    monkeypatch.chdir("elsewhere")  # where neither runs/ nor data/ lies
    run("../runs/copy/config.yaml", "train.steps=8")
    assert not list(Path().iterdir())
    monkeypatch.chdir(folder)
    assert steps("copy") == [4, 8] and steps("renamed") == [4, 6]
    monkeypatch.chdir(folder / "runs/copy")
    run("config.yaml", "train.steps=9")
    monkeypatch.chdir(folder)
    assert steps("copy") == [8, 9]
    assert before.startswith(Path("runs/renamed/metrics.jsonl").read_text()[:200])
    run("runs/copy/config.yaml", "run.name=branch", "run.out_dir=runs", "train.steps=2")
    assert steps("branch") == [2] and steps("copy") == [8, 9]


def test_a_configuration_of_that_name_elsewhere_is_named_after_its_file(run):
    values = {"data": {"dataset": "data"}, "train": {"steps": 1}}
    Path("config.yaml").write_text(yaml.safe_dump(values))
    run("config.yaml", *SETTINGS[1:])
    assert steps("config") == [1]


def test_evaluating_finds_the_dataset_from_anywhere(run, folder, monkeypatch, capsys):
    run(*SETTINGS, "run.name=first", "train.steps=2")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    code, out, err = call_main(verbs, "evaluate", "../runs/first", monkeypatch=monkeypatch,
                               capsys=capsys)
    assert code == 0 and "nats per token" in out, err


def test_lines_that_are_not_written_again_stay(run):
    run(*SETTINGS, "run.name=a", "train.steps=5", "eval.every_steps=3",
        "log.samples_every_steps=3")
    run(*SETTINGS, "run.name=a", "train.steps=9", "eval.every_steps=3",
        "log.samples_every_steps=3")
    evals = [line["step"] for line in lines("a") if line["event"] == "eval"]
    samples = [json.loads(line)["step"]
               for line in Path("runs/a/samples.jsonl").read_text().splitlines()]
    assert evals == samples == [3, 5, 6, 9]
    assert [line["step"] for line in lines("a") if line["event"] == "end"] == [5, 9]
    run(*SETTINGS, "run.name=a", "train.steps=12", "eval.every_steps=3",
        "log.samples_every_steps=3")  # now 9 is due once more, and stands there once
    assert [line["step"] for line in lines("a") if line["event"] == "eval"] == [3, 5, 6, 9, 12]


def test_a_stop_that_was_continued_leaves_no_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (
        {"event": "eval", "step": 3}, {"event": "end", "step": 3, "stopped_by": "SIGTERM"},
        {"event": "train", "step": 4})) + '[1]\n{"event": "tr')
    from gpt.configuration import LogConfig
    RunLog(tmp_path, LogConfig(), {}, 3, ["sample"]).close()
    assert path.read_text() == '{"event": "eval", "step": 3}\n'


def test_what_differs_from_the_last_time_is_said_line_by_line(run):
    run(*SETTINGS, "run.name=a", "train.steps=3", "optim.lr=0.04", "optim.schedule=constant")
    out = run(*SETTINGS, "run.name=a", "train.steps=5", "optim.lr=0.5", "train.grad_clip=2",
              "optim.schedule=constant", "data.dataset=./data")
    told = ["optim.lr: 0.04 before, 0.5 now", "train.steps: 3 before, 5 now",
            "train.grad_clip: 1.0 before, 2.0 now"]
    assert [line for line in out.splitlines() if " before, " in line] == told
    warnings = [line for line in lines("a") if line["event"] == "warning"]
    assert [line["message"] for line in warnings] == told
    assert {line["step"] for line in warnings} == {3}
    assert " before, " not in run(*SETTINGS, "run.name=b", "train.steps=2")
    run(*SETTINGS, "run.name=a", "train.steps=6", "optim.lr=0.5", "train.grad_clip=2",
        "optim.schedule=constant")
    assert len([line for line in lines("a") if line["event"] == "warning"]) == 4  # and stay there


def test_a_cooled_run_that_is_extended_is_told_of_and_the_kept_checkpoint_makes_it_whole(run):
    wsd = [*SETTINGS, "optim.schedule=wsd", "optim.cooldown_fraction=0.4", "checkpoint.keep=1"]
    run(*wsd, "run.name=long", "train.steps=20")
    out = run(*wsd, "run.name=short", "train.steps=10", "checkpoint.keep_before_cooldown=true")
    assert steps("short") == [6, 10]
    out = run(*wsd, "run.name=short", "train.steps=12", "checkpoint.keep_before_cooldown=true")
    assert "the learning rate had fallen to 0% of its peak and rises to 42% again" in out
    assert "run.resume=runs/short/checkpoints/step-00000006 run.name=ANOTHER" in out
    assert steps("short") == [6, 12]
    run(*wsd, "run.name=again", "train.steps=20",
        "run.resume=runs/short/checkpoints/step-00000006")
    assert torch.equal(weights("again", 20), weights("long", 20))
    run(*wsd, "run.name=plain", "train.steps=10")
    assert steps("plain") == [10]
    out = run(*wsd, "run.name=plain", "train.steps=20")
    assert "keep one with checkpoint.keep_before_cooldown=true" in out
    assert not torch.equal(weights("plain", 20), weights("long", 20))


def test_a_run_that_was_stopped_before_its_cooldown_is_not_warned(run):
    run(*SETTINGS, "run.name=a", "train.steps=6", "optim.schedule=constant")
    out = run(*SETTINGS, "run.name=a", "train.steps=12", "optim.schedule=constant")
    assert "the learning rate had fallen" not in out


def test_a_checkpoint_from_before_the_cooldown_is_of_wsd_alone(run):
    told = run(*SETTINGS, "optim.schedule=cosine", "checkpoint.keep_before_cooldown=true", code=2)
    assert "checkpoint.keep_before_cooldown is for optim.schedule=wsd" in told


@pytest.fixture
def gave_up(run, folder, monkeypatch, capsys) -> list[int]:
    """A run that stopped since nothing better was found: its best step, and its last."""
    run(*SETTINGS, "run.name=p", "train.steps=200", "eval.every_steps=2", "eval.patience=2",
        "optim.lr=3", "optim.schedule=constant", "checkpoint.keep=1")
    found = steps("p")
    assert len(found) == 2
    return found


def test_a_run_that_gave_up_stands_for_its_best_checkpoint(gave_up, capsys, monkeypatch):
    best, last = gave_up
    for name, step in (("runs/p", best), ("runs/p@newest", last), ("runs/p@best", best),
                       (f"runs/p@step-{last}", last), (f"runs/p@step-{last:08d}", last),
                       (f"runs/p/checkpoints/step-{last:08d}", last)):
        capsys.readouterr()
        assert checkpoint.find(name).name == f"step-{step:08d}", name
        told = capsys.readouterr().err
        assert (f"ended at step {last}, since nothing better was found after step {best}" in told
                ) == (name == "runs/p")
    same = [gpt.load(name).model.blocks[0].attention.qkv_proj.weight
            for name in ("runs/p", "runs/p@best", "runs/p@newest")]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    code, _, err = call_main(sample, "runs/p@step-1", "--prompt", "a", monkeypatch=monkeypatch,
                             capsys=capsys)
    there = checkpoint.steps_in(Path("runs/p/checkpoints"))
    assert code == 2 and err == (f"error: runs/p@step-1: there is no such checkpoint; choose from "
                                 f"@newest, @best, @step-{last}, @step-{best}\n")
    (there[best] / "config.json").write_text("{}")
    assert checkpoint.find("runs/p") == there[last]
    assert f"{there[best]}, the best, is passed over" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be used"):
        checkpoint.find("runs/p@best")


def test_a_run_that_went_on_stands_for_its_newest_checkpoint_again(gave_up, run):
    _, last = gave_up
    run(*SETTINGS, "run.name=p", f"train.steps={last + 3}", "eval.every_steps=2",
        "optim.lr=3", "optim.schedule=constant", "checkpoint.keep=1")
    assert checkpoint.find("runs/p").name == f"step-{last + 3:08d}"


def test_a_run_that_was_never_evaluated_has_no_best(run):
    run(*SETTINGS, "run.name=a", "train.steps=2")
    Path("runs/a/checkpoints/best.json").unlink()
    with pytest.raises(UserError, match="runs/a has no best checkpoint"):
        checkpoint.find("runs/a@best")
    Path("runs/at@home").mkdir()
    Path("runs/at").mkdir()
    with pytest.raises(UserError, match="runs/at@home has no checkpoints"):
        checkpoint.find("runs/at@home")


def test_every_file_has_the_mode_that_the_umask_gives(run, monkeypatch, capsys):
    before = os.umask(0o027)
    try:
        run(*SETTINGS, "run.name=a", "train.steps=2")
        Path("pairs.jsonl").write_text('{"prompt": "the ", "completion": "quick"}\n' * 9)
        for main, words in ((verbs, ["export", "runs/a", "out", "--format", "hf"]),
                            (finetune, ["finetune.from=runs/a", "finetune.data=pairs.jsonl",
                                        "finetune.val_fraction=0", "finetune.method=lora",
                                        "train.steps=1", "run.name=tuned"])):
            code, _, err = call_main(main, *words, monkeypatch=monkeypatch, capsys=capsys)
            assert code == 0, err
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for folder in ("runs/a", "out", "runs/tuned")
             for path in Path(folder).rglob("*") if path.is_file()}
    assert any(path.suffix == ".safetensors" for path in found)
    assert {path: mode for path, mode in found.items() if mode != 0o640} == {}


@pytest.mark.parametrize(("said", "kept"), [
    ('{"step": 4}', 4), ('{"step": 5}', None), ('{"step": 4.0}', None), ('{"step": 1e999}', None),
    ('{"step": true}', None), ("[4]", None), ("[" * 100_000, None), ("", None)])
def test_the_checkpoint_before_the_cooldown_is_one_that_is_there(said, kept, tmp_path):
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / KEPT).write_text(said)
    assert kept_step(tmp_path) == kept
