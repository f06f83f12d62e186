"""What a name stands for: a run, a checkpoint, a Hugging Face folder; and what reading it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState
from gpt.runs.saved_model import SavedModel, find_model
from gpt.tokenizer import build_tokenizer
from tests.interop.models import change_config, saved
from tests.tiny import tiny_gpt
from tests.tiny_runs import optimizer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    model = tiny_gpt(vocab_size=257)
    checkpoint.save(folder / "checkpoints", model, optimizer_of(model), build_tokenizer("byte"),
                    TrainState(3))
    return folder


def test_runs_checkpoints_and_hugging_face_folders_are_told_apart(run, tmp_path):
    step = run / "checkpoints/step-00000003"
    assert find_model(str(run)) == find_model(str(step)) == SavedModel(step, is_ours=True)
    _, folder = saved("gpt2", tmp_path / "hf")
    assert find_model(str(folder)) == SavedModel(folder, is_ours=False)


def test_models_come_in_the_type_that_is_asked_for(run, tmp_path):
    _, folder = saved("llama 3", tmp_path / "hf")
    for name in (run, folder):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = find_model(str(name)).model(dtype)
            assert {p.dtype for p in model.parameters()} == {dtype}
            assert not model.training


def test_the_hash_of_the_weights_is_of_the_weights(run, tmp_path):
    _, folder = saved("gpt2", tmp_path / "hf")
    hashes = {find_model(str(name)).weight_hash() for name in (run, folder)}
    assert len(hashes) == 2 and all(len(one) == 64 for one in hashes)
    change_config(folder, summary_type="other")
    assert find_model(str(folder)).weight_hash() in hashes
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert find_model(str(folder)).weight_hash() not in hashes


def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(run, tmp_path):
    _, folder = saved("gpt2", tmp_path / "hf")
    size = find_model(str(folder)).tokenizer().vocab_size
    change_config(folder, vocab_size=size)
    assert find_model(str(folder)).tokenizer().vocab_size == size
    change_config(folder, vocab_size=size - 1)
    with pytest.raises(UserError, match=f"the tokenizer has {size} ids, the model {size - 1}; "
                                        "they belong to different models"):
        find_model(str(folder)).tokenizer()


def test_what_names_no_model_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "model.bin"):
        Path(name).write_bytes(b"GGUF")
    for name, expected in (("model.gguf", "model.gguf is no GGUF file: it does not begin"),
                           ("model.bin", "model.bin is a file, and cannot be opened as a run"),
                           ("none", "there is no run none"), ("runs/none", "there is no run"),
                           (".", "has no checkpoints"), ("a\0b", "there is no run")):
        with pytest.raises(UserError, match=expected):
            find_model(name)


def test_weights_alone_are_no_model(tmp_path):
    _, folder = saved("gpt2", tmp_path / "hf")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot be used: manifest\.json is missing"):
        find_model(str(folder))


def test_a_checkpoint_that_lost_its_manifest_is_damaged_and_not_another_tools(run, tmp_path):
    shutil.copytree(run / "checkpoints/step-00000003", tmp_path / "step")
    (tmp_path / "step/manifest.json").unlink()
    assert "model_type" not in json.loads((tmp_path / "step/config.json").read_text())
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        find_model(str(tmp_path / "step"))


def test_a_checkpoint_with_a_damaged_configuration_is_still_ours(run, tmp_path):
    shutil.copytree(run / "checkpoints/step-00000003", tmp_path / "step")
    (tmp_path / "step/config.json").write_text('{"model_type": "gpt2"')
    with pytest.raises(UserError, match=r"cannot be used: config\.json is damaged"):
        find_model(str(tmp_path / "step"))


def test_adapters_of_adapters_are_refused_and_no_ring_of_them_is_followed(tmp_path):
    for name, base in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(
            {"base_model_name_or_path": str(tmp_path / base)}))
    for name in "abc":
        with pytest.raises(UserError, match=r"holds adapters of .*, which holds adapters itself"):
            find_model(str(tmp_path / name))
    _, folder = saved("gpt2", tmp_path / "hf")
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(
        {"base_model_name_or_path": str(folder)}))
    assert find_model(str(tmp_path / "a")) == SavedModel(folder, False, tmp_path / "a")
