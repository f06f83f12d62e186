"""Checkpoints of large models: several files with an index, each written by one of the ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt.errors import UserError
from gpt.files.tensors import SavedTensors, TensorFile
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks
from gpt.parallel import Layout, Sizes
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState, saving
from gpt.tokenizer import build_tokenizer
from gpt.training.step import Step
from tests.parallel.processes import run_ranks
from tests.tiny import random_tokens, tiny_gpt
from tests.tiny_runs import batch_of, optimizer_of

SMALL = 50_000  # bytes, of which the tiny model has four times as many
SIZES = {"alone": Sizes(), "replicate": Sizes(replicate=2), "shard": Sizes(shard=2)}


def write(folder: Path, sizes: Sizes, shard_size: int = SMALL) -> set[str]:
    """On each rank: one step, saved in small files and as one; the names of the files it wrote."""
    machine = Machine(torch.device("cpu"), torch.float32,
                      ranks=Ranks(dist.group.WORLD if dist.is_initialized() else None))
    layout, model = Layout(machine, sizes), tiny_gpt(vocab_size=257)
    layout.place(model)
    optimizer = layout.optimizer(optimizer_of(model))
    step = Step(model, optimizer, machine, 1.0, layout=layout)
    step.gradients([batch_of(seed=machine.data.rank, vocab_size=257)], lambda: None)
    step.apply()
    written, file = set(), saving.TensorFile

    def opened(path: Path, tensors: dict[str, torch.Tensor]) -> TensorFile:
        written.add(path.name)
        return file(path, tensors)

    def save(name: str, size: int) -> None:
        checkpoint.save(folder / name, model, optimizer, build_tokenizer("byte"),
                        TrainState(1, 100, 1.5), layout, size)

    save("whole", 10**9)
    saving.TensorFile = opened
    try:
        save("cut", shard_size)
    finally:
        saving.TensorFile = file
    return written


@pytest.fixture(scope="module", params=SIZES)
def saved(request, tmp_path_factory) -> tuple[Path, list[set[str]]]:
    """(a folder with cut/step-00000001 and whole/step-00000001, which files each rank wrote)"""
    folder, sizes = tmp_path_factory.mktemp(request.param), SIZES[request.param]
    return folder, ([write(folder, sizes)] if sizes.world_size == 1
                    else run_ranks(2, write, folder, sizes))


@pytest.fixture
def cut(saved) -> Path:
    return saved[0] / "cut" / "step-00000001"


@pytest.fixture
def whole(saved) -> Path:
    return saved[0] / "whole" / "step-00000001"


def test_weights_are_the_same_in_several_files_and_in_one(cut, whole):
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = SavedTensors(cut / name), SavedTensors(whole / name)
        assert ours.keys() == theirs.keys() and len(ours) > 10
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert (whole / name).is_file() and not (cut / name).exists()


def test_files_are_numbered_no_larger_than_asked_and_listed_in_an_index(cut):
    files = sorted(path.name for path in cut.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors"
                     for i in range(1, len(files) + 1)]
    sizes = [sum(tensor.nbytes for tensor in SavedTensors(cut / file).values()) for file in files]
    assert max(sizes) <= SMALL
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    for file in files:
        assert set(SavedTensors(cut / file)) == {
            name for name, place in index["weight_map"].items() if place == file}


def test_every_rank_writes_files_of_its_own(saved, cut):
    for name in ("model", "optimizer"):
        there = sorted(path.name for path in cut.glob(f"{name}-*.safetensors"))
        for rank, written in enumerate(saved[1]):
            assert {each for each in written if each.startswith(name)} == set(
                there[rank::len(saved[1])])


def test_one_process_goes_on_from_several_files_as_from_one(cut, whole):
    models = []
    for path in (cut, whole):
        assert checkpoint.damage(path) == []
        model = tiny_gpt(seed=5, vocab_size=257)
        optimizer = optimizer_of(model)
        assert checkpoint.load_training(path, model, optimizer) == TrainState(1, 100, 1.5)
        model(random_tokens(2, 8)).sum().backward()
        optimizer.step()
        models.append(model)
    ours, theirs = models
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(),
                                                  strict=True))
    assert torch.equal(checkpoint.load_model(cut)(random_tokens(1, 4)),
                       checkpoint.load_model(whole)(random_tokens(1, 4)))


def test_the_hash_of_weights_in_several_files_says_which_they_are(cut, whole, tmp_path):
    assert len(checkpoint.weight_hash(cut)) == len(checkpoint.weight_hash(whole)) == 64
    other = tmp_path / "other"
    shutil.copytree(cut, other)
    manifest = json.loads((other / "manifest.json").read_text())
    last = max(name for name in manifest["files"] if name.startswith("model-"))
    manifest["files"][last]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.weight_hash(other) != checkpoint.weight_hash(cut)


@pytest.mark.parametrize("name", ["model-00002-of-*.safetensors", "model.safetensors.index.json",
                                  "optimizer-00001-of-*.safetensors"])
def test_a_file_of_several_that_is_damaged_or_missing_is_named(cut, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(cut, copy)
    [path] = copy.glob(name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint.damage(copy) == [f"{path.name} is damaged"]
    path.unlink()
    assert checkpoint.damage(copy) == [f"{path.name} is missing"]
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        checkpoint.find(str(copy))


def test_an_optimizer_in_several_files_that_is_not_there_is_told_as_ever(cut, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cut, copy)
    for path in copy.glob("optimizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no optimizer state"):
        model = tiny_gpt(vocab_size=257)
        checkpoint.load_training(copy, model, optimizer_of(model))


def read_sharded(path: Path) -> dict[str, torch.Tensor]:
    machine = Machine(torch.device("cpu"), torch.float32, ranks=Ranks(dist.group.WORLD))
    layout, model = Layout(machine, Sizes(shard=2)), tiny_gpt(seed=5, vocab_size=257)
    layout.place(model)
    checkpoint.load_training(path, model, layout.optimizer(optimizer_of(model)), layout)
    return {name: layout.whole(name, weight) for name, weight in model.state_dict().items()}


def test_ranks_go_on_from_what_any_other_number_of_them_has_written(cut, whole):
    expected = SavedTensors(whole / "model.safetensors")
    for weights in run_ranks(2, read_sharded, cut):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
