"""benchmarks/without.py: what it takes away is gone, and nothing else is."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import without
from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.model import GPT
from tests.tiny import ROOT

EARLY, LATE = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 9]])


def changed(arm: str, n_layer: int = 2) -> GPT:
    fields, change = without.ARMS[arm]
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{"vocab_size": 20, **without.SHAPE, "n_layer": n_layer, **fields}))
    with torch.no_grad():
        for block in model.blocks:
            for matrix in (block.attention.out_proj, block.feedforward.down_proj):
                matrix.weight.normal_(std=0.1)
    change(model)
    return model


@pytest.mark.parametrize("arm", without.ARMS)
def test_only_without_a_mask_is_what_follows_seen(arm):
    model = changed(arm)
    alike = torch.allclose(model(EARLY)[0, :3], model(LATE)[0, :3], atol=1e-5)
    assert alike == (arm != "no mask")


def test_each_part_is_gone():
    no_positions = changed("no positions", 1)  # a second layer sees what each could read
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert torch.allclose(no_positions(EARLY)[0, -1], no_positions(swapped)[0, -1], atol=1e-5)
    whole = changed("all of it", 1)
    assert not torch.allclose(whole(EARLY)[0, -1], whole(swapped)[0, -1], atol=1e-3)
    without_norms = {name for name, _ in changed("no norms").named_parameters() if "norm" in name}
    assert not without_norms
    streams = []
    model = changed("no residual")
    model.blocks[0].register_forward_hook(lambda block, given, out: streams.append((given[0], out)))
    model(EARLY)
    (before, after), block = streams[0], model.blocks[0]
    read = block.attention(block.attention_norm(before), *_rotation(model), None, None)
    assert torch.allclose(after, block.feedforward(block.feedforward_norm(read)), atol=1e-5)
    assert isinstance(changed("no feed-forward").blocks[1].feedforward, without.Zero)


def _rotation(model: GPT):
    model.rotations.cover(4, torch.device("cpu"))
    return [model.rotations.at(torch.arange(4))["global"]]


def test_all_arms_are_trained_and_told(monkeypatch, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text() * 3)
    for name, value in (("STEPS", 2), ("BATCH", 2), ("RESULTS", tmp_path / "found.json")):
        monkeypatch.setattr(without, name, value)
    without.main([str(text), "--rounds=1"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["arms"].keys() == without.ARMS.keys()
    assert all(1 < arm["loss"] < 20 for arm in found["arms"].values())
    assert [arm for arm, told in found["arms"].items() if "loss_with_what_follows" in told] == [
        "no mask"]
    assert len(capsys.readouterr().out.splitlines()) == 9
    with pytest.raises(UserError, match="is not there; give the path"):
        without.main([str(tmp_path / "none.txt")])
