"""Preparing under a launcher: once for a run that needs it, or in parts that one rank joins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.preparation import prepare
from data.sharding.parts import Share
from gpt.shards import Dataset, verify_dataset
from tests.data.corpora import documents, in_small_pieces, many_files, recipe
from tests.parallel.processes import free_port, launch
from tests.tiny import ROOT, script_environment

TINY = ("model.block_size=16", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
        "train.steps=2", "train.batch_size=4", "run.device=cpu", "run.compile=false",
        "run.dtype=float32", "eval.max_tokens=200", "log.samples_every_steps=null")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def torchrun(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user would type it, with two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         f"--master-port={free_port()}", str(ROOT / script), *arguments],
        capture_output=True, text=True, env=script_environment(), timeout=240)


def test_a_run_whose_dataset_is_missing_prepares_it_once_while_the_others_wait():
    Path("corpus.txt").write_text("the cat sat on the mat and the dog ran\n" * 200)
    Path("words.yaml").write_text("name: words\nsources: [corpus.txt]\ntokenizer: byte\n"
                                  "out: data/words\n")
    done = torchrun("train.py", "data.dataset=words.yaml", "run.name=first", *TINY)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count("data/words is not there yet: preparing it") == 1
    assert said.count("layout: replicate 2") == 1
    assert verify_dataset(Path("data/words")) == []
    assert [path.name for path in Path("data").iterdir()] == ["words"]  # nothing is left over
    assert (Path("runs/first/checkpoints/step-00000002") / "manifest.json").is_file()


def test_a_corpus_without_text_is_one_line_and_exit_code_2_on_all(tmp_path):
    Path("empty.txt").write_text("")
    Path("words.yaml").write_text("name: words\nsources: [empty.txt]\ntokenizer: byte\n"
                                  "out: data/words\n")
    done = launch(2, "train.py", "data.dataset=words.yaml", *TINY, cwd=tmp_path)
    assert [each.returncode for each in done] == [2, 2]
    assert [each.stderr for each in done] == [
        "error: the sources (empty.txt) are empty: there is no text to prepare\n", ""]
    assert not Path("data/words").exists() and not Path("runs").exists()


def test_a_preparation_in_parts_ends_in_one_dataset_that_one_rank_has_joined(monkeypatch):
    changes = many_files()
    in_small_pieces(monkeypatch)
    alone = prepare(recipe(**changes, out="alone"))
    done = torchrun("data/prepare.py", *(str(source) for source in changes["sources"]),
                    "tokenizer=byte", "val_fraction=0.2", "out=out", "workers=1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path().glob("out*")) == ["out"]
    assert verify_dataset(Path("out")) == []
    assert sorted(documents(Dataset(Path("out")), "train") + documents(Dataset(Path("out")), "val")
                  ) == sorted(documents(alone, "train") + documents(alone, "val"))
    assert "error" not in done.stderr


@pytest.mark.parametrize(("environment", "share"), [
    ({}, Share()), ({"RANK": "1", "WORLD_SIZE": "3"}, Share(1, 3)),
    ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, Share(2, 4)),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Share(1, 2)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Share())])
def test_the_share_of_a_process_is_what_any_launcher_says(environment, share, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Share.from_environment() == share
