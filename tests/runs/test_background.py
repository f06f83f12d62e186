"""Saving while training goes on: the same bytes, one copy, and failures that are told."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from gpt.errors import TrainingFailed
from gpt.runs import checkpoint
from gpt.runs.checkpoint import Contents, InOrder, TrainState
from gpt.tokenizer import build_tokenizer
from tests.runs.test_checkpoint import files_of, learn, trained


def contents_of(folder, model, optimizer, step=3):
    return Contents.of(folder, model, optimizer, build_tokenizer("byte"),
                       TrainState(step, 100, 1.5))


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_copy_is_written_to_the_same_bytes_whatever_becomes_of_the_model(tmp_path, optim):
    model, optimizer = trained(optim=optim)
    now = checkpoint.write(tmp_path / "now", contents_of(tmp_path, model, optimizer))
    room = {}
    copy = contents_of(tmp_path, model, optimizer).copied(room)
    as_it_lies = contents_of(tmp_path, model, optimizer)
    learn(model, optimizer, 9)
    later = checkpoint.write(tmp_path / "later", copy)
    spoiled = checkpoint.write(tmp_path / "spoiled", as_it_lies)

    names = files_of(now)
    assert names == files_of(later) and len(names) == 7
    assert all((now / name).read_bytes() == (later / name).read_bytes() for name in names)
    weights = "model.safetensors"
    assert (now / weights).read_bytes() != (spoiled / weights).read_bytes()


def test_the_next_copy_takes_the_memory_of_the_last(tmp_path):
    model, optimizer = trained()
    room = {}
    contents = contents_of(tmp_path, model, optimizer)
    first = {key: tensor.data_ptr() for key, tensor in contents.copied(room)}
    learn(model, optimizer, 9)
    again = contents_of(tmp_path, model, optimizer).copied(room)
    assert {key: tensor.data_ptr() for key, tensor in again} == first
    assert contents.tensor_bytes == sum(t.numel() * t.element_size() for t in room.values())
    for key, tensor in contents_of(tmp_path, model, optimizer):
        assert torch.equal(dict(again)[key], tensor), key


def test_things_are_done_in_order_on_another_thread_and_waited_for():
    thread, done, go_on = InOrder(), [], threading.Event()
    thread.do(lambda: (go_on.wait(10), done.append(threading.current_thread().name)))
    thread.do(lambda: done.append("second"))
    thread.check()
    assert done == []
    go_on.set()
    thread.wait()
    assert done[1] == "second" and done[0].startswith("saving")
    thread.close()


def test_after_a_failure_nothing_more_is_done_and_it_is_told_once_it_is_known():
    thread, done = InOrder(), []

    def fail():
        raise OSError(28, "No space left on device", "a file")

    thread.do(fail)
    thread.do(lambda: done.append("pruned"))
    with pytest.raises(OSError, match="No space"):
        thread.wait()
    thread.wait()
    thread.do(lambda: done.append("later"))
    thread.wait()
    assert done == []
    thread.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, bad):
    model, optimizer = trained()
    sound = checkpoint.write(tmp_path, contents_of(tmp_path, model, optimizer))
    with torch.no_grad():
        model.blocks[0].attention.out_proj.weight[1, 2] = bad
    with pytest.raises(TrainingFailed, match=r"blocks\.0\.attention\.out_proj\.weight holds "
                                             "numbers that are not finite: it is not saved"):
        checkpoint.write(tmp_path, contents_of(tmp_path, model, optimizer, 4))
    assert [*checkpoint.steps_in(tmp_path).values()] == [sound]
    assert [path.name for path in tmp_path.iterdir()] == [sound.name]


def test_a_damaged_checkpoint_goes_only_once_the_new_one_has_its_name(tmp_path, monkeypatch):
    model, optimizer = trained()
    path = checkpoint.write(tmp_path, contents_of(tmp_path, model, optimizer))
    (path / "state.json").write_text("{}")
    seen, rename = [], os.rename

    def watched(old, new):
        seen.append((old.name.partition(".")[2], new.name.partition(".")[2],
                     sorted(p.name.partition(".")[2] for p in tmp_path.iterdir())))
        rename(old, new)

    monkeypatch.setattr("pathlib.Path.rename", watched)
    assert checkpoint.write(tmp_path, contents_of(tmp_path, model, optimizer)) == path
    assert checkpoint.damage(path) == [] and [*tmp_path.iterdir()] == [path]
    temporary = f"tmp-{os.getpid()}"
    assert seen == [("", f"{temporary}.old", ["", temporary]),
                    (temporary, "", [temporary, f"{temporary}.old"])]


def test_every_folder_on_the_way_is_flushed(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def watched(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    model, optimizer = trained()
    path = checkpoint.write(tmp_path / "new" / "run" / "checkpoints",
                            contents_of(tmp_path, model, optimizer))
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "run", path.parent):
        assert str(folder) in flushed, folder
    temporary = f"{path}.tmp-{os.getpid()}"
    for name in (*files_of(path), "", "tokenizer"):
        assert any(each.startswith(f"{temporary}/{name}".rstrip("/")) for each in flushed), name
    assert flushed[-1] == str(path.parent)  # where it has its name
