"""Checkpoints: whole or not at all, verified, and the same bits back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt.batches import MicroBatch
from gpt.errors import UserError
from gpt.files import as_json
from gpt.runs import checkpoint
from gpt.runs.checkpoint import Best, TrainState, saving
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, random_tokens, tiny_gpt
from tests.tiny_runs import accumulate_gradients, optimizer_of


def trained(steps: int = 3, optim: str = "adamw", **changes):
    model = tiny_gpt(vocab_size=257, **changes)
    optimizer = optimizer_of(model, name=optim)
    for step in range(steps):
        learn(model, optimizer, step)
    return model, optimizer


def learn(model, optimizer, step):
    tokens = random_tokens(4, 9, vocab_size=257, seed=step)
    accumulate_gradients(model, [MicroBatch(tokens[:, :-1], tokens[:, 1:], 32)], CPU)
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, step: int = 3, **changes) -> Path:
    model, optimizer = trained(**changes)
    return checkpoint.save(folder, model, optimizer, build_tokenizer("byte"),
                           TrainState(step, 100, 1.5))


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"optim": "muon"}],
                         ids=["untied", "tied", "muon"])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, changes):
    path = save(tmp_path, **changes)
    undisturbed, optimizer = trained(**changes)
    model, fresh = trained(steps=0, **changes)

    state = checkpoint.load_training(path, model, fresh)
    for step in range(3, 6):
        learn(undisturbed, optimizer, step)
        learn(model, fresh, step)

    assert state == TrainState(3, 100, 1.5)
    for ours, theirs in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(model.blocks[0].attention.out_proj.weight,
                           trained(**changes)[0].blocks[0].attention.out_proj.weight)


@pytest.mark.parametrize(("saved", "asked", "lacking"), [
    ("adamw", "muon", "momentum"), ("muon", "adamw", "exp_avg and exp_avg_sq and step")])
def test_another_optimizers_checkpoint_is_refused(tmp_path, saved, asked, lacking):
    path = save(tmp_path, optim=saved)
    with pytest.raises(UserError, match=rf"was trained with another optimizer: it has no {lacking}"
                                        r"; set optim\.name as it was there"):
        checkpoint.load_training(path, *trained(steps=0, optim=asked))
    assert checkpoint.load_training(path, *trained(steps=0, optim=saved)).step == 3


def test_a_checkpoint_alone_is_enough_to_run_the_model(tmp_path):
    path = save(tmp_path)
    model, tokens = checkpoint.load_model(path), random_tokens(2, 8)
    assert torch.equal(model(tokens), trained()[0](tokens))
    assert checkpoint.load_tokenizer(path).fingerprint == build_tokenizer("byte").fingerprint
    assert {p.name for p in path.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "config.json", "state.json", "manifest.json",
        "tokenizer"}


def files_of(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def test_any_flipped_bit_truncation_or_missing_file_is_found_and_named(tmp_path):
    path = save(tmp_path)
    assert checkpoint.damage(path) == []
    names = files_of(path)
    assert len(names) == 7
    for name in names:
        original = (path / name).read_bytes()
        for spoiled in (flip(original, len(original) // 2), flip(original, 0), original[:-1], b""):
            (path / name).write_bytes(spoiled)
            problems = checkpoint.damage(path)
            assert problems and (name in problems[0] or name == "manifest.json"), name
        (path / name).unlink()
        assert checkpoint.damage(path), name
        (path / name).write_bytes(original)
    assert checkpoint.damage(path) == []


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def test_a_damaged_checkpoint_is_passed_over_for_the_next_newest_and_said(tmp_path, capsys):
    older, newer = save(tmp_path, 3), save(tmp_path, 12)
    assert checkpoint.newest_sound(tmp_path) == newer
    (newer / "model.safetensors").write_bytes(flip((newer / "model.safetensors").read_bytes(), 999))
    assert checkpoint.newest_sound(tmp_path) == older
    assert "step-00000012 is passed over: model.safetensors is damaged" in capsys.readouterr().err


def test_when_no_checkpoint_is_sound_there_is_no_fresh_start(tmp_path):
    (save(tmp_path) / "state.json").unlink()
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* is sound"):
        checkpoint.newest_sound(tmp_path)
    assert checkpoint.newest_sound(tmp_path / "nothing-here") is None


def test_steps_decide_which_is_newest_and_not_the_clock(tmp_path):
    for step in (12, 3):  # the lower step is written later
        path = save(tmp_path, step)
        os.utime(path, (2e9 - step, 2e9 - step))
    assert checkpoint.newest_sound(tmp_path).name == "step-00000012"


def test_a_save_that_fails_leaves_the_old_state_and_no_leftovers(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for broken in ("TensorFile", "write_json", "_seal", "flush_to_disk"):
        with monkeypatch.context() as patch:
            patch.setattr(saving, broken, fail)
            with pytest.raises(OSError, match="No space"):
                save(tmp_path, 5)
        checkpoint.remove_leftovers(tmp_path)
        sound = checkpoint.newest_sound(tmp_path)
        assert sound.name in ("step-00000003", "step-00000005")
        assert not list(tmp_path.glob("*.tmp-*"))


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_at_the_next_start(tmp_path):
    path = save(tmp_path, 3)
    shutil.copytree(path, tmp_path / "step-00000009.tmp-123")
    assert checkpoint.newest_sound(tmp_path) == path
    checkpoint.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    checkpoint.prune(tmp_path, 2, 5, {2, None})
    assert list(checkpoint.steps_in(tmp_path)) == [5, 4, 2]
    checkpoint.prune(tmp_path, 1, 4, set())
    assert list(checkpoint.steps_in(tmp_path)) == [5, 4]  # 5 lies beyond: it must not crowd out 4
    checkpoint.prune(tmp_path, 1, 5, set())
    assert list(checkpoint.steps_in(tmp_path)) == [5]


def test_a_best_beyond_the_resumed_step_is_not_believed(tmp_path):
    assert checkpoint.read_best(tmp_path, 10) is None
    checkpoint.write_best(tmp_path, Best(8, 1.25))
    assert checkpoint.read_best(tmp_path, 8) == Best(8, 1.25)
    assert checkpoint.read_best(tmp_path, 7) is None


def test_find_takes_a_run_or_one_checkpoint_and_says_what_is_wrong_otherwise(tmp_path):
    path = save(tmp_path / "run" / "checkpoints")
    assert checkpoint.find(str(tmp_path / "run")) == path
    assert checkpoint.find(str(path)) == path
    with pytest.raises(UserError, match=r"there is no run .*nowhere"):
        checkpoint.find(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="has no checkpoints"):
        checkpoint.find(str(tmp_path))
    (path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be used: config\.json is damaged"):
        checkpoint.find(str(path))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    path = save(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["model"]["n_layer"] = 3
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        checkpoint.load_model(path)
    for name, value, problem in (("n_layer", 10**9, "n_layer"), ("vocab_size", None, "vocab_size")):
        changed = {"model": config["model"] | {name: value}}
        (path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError, match=f"describes no model: (.|\n)*{problem}"):
            checkpoint.load_model(path)


def test_a_manifest_that_leads_out_of_the_folder_is_damage(tmp_path):
    path = save(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../outside"] = {"bytes": 0, "sha256": ""}
    (path / "manifest.json").write_text(as_json(manifest))
    assert any("leads out of the folder" in problem for problem in checkpoint.damage(path))


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, '{"files": ' + "[" * 600 + "]" * 600 + "}",
                                  '{"files": []}', '{"files": {"a": 5}}', "null"])
def test_whatever_stands_in_a_manifest_is_damage(text, tmp_path):
    path = save(tmp_path)
    assert checkpoint.damage(path) == []
    (path / "manifest.json").write_text(text)
    assert "manifest.json" in checkpoint.damage(path)[0]


@pytest.mark.parametrize("text", ['{"step": "3", "val_loss": 1}', '{"step": [3], "val_loss": 1}',
                                  '{"step": 3, "val_loss": 1, "more": 2}', "[" * 100_000])
def test_whatever_stands_in_the_best_is_none(text, tmp_path):
    save(tmp_path)
    checkpoint.write_best(tmp_path, Best(3, 2.5))
    assert checkpoint.read_best(tmp_path, 3) == Best(3, 2.5)
    (tmp_path / "best.json").write_text(text)
    assert checkpoint.read_best(tmp_path, 3) is None


@pytest.mark.parametrize(("text", "where"), [
    ('{"step": "3"}', "step: "), ('{"step": 3.5}', "step: "), ('{"loss_scale": 1}', "loss_scale: "),
    ('{"epoch": 3}', "epoch: "), ("[]", "it: ")])
def test_a_state_of_other_kinds_is_refused_with_its_field(text, where, tmp_path):
    path = save(tmp_path)
    assert checkpoint.read_state(path) == TrainState(3, 100, 1.5)
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match=rf"state\.json is damaged: {where}"):
        checkpoint.read_state(path)


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x02" + bytes(7) + b"{}"],
                         ids=["empty", "no header", "nothing in it"])
def test_an_optimizer_that_is_damaged_is_refused(data, tmp_path):
    path = save(tmp_path)
    model, optimizer = trained(0)
    assert checkpoint.load_training(path, model, optimizer).step == 3
    (path / "optimizer.safetensors").write_bytes(data)
    if b"{}" in data:  # whatever it holds is put where it belongs
        checkpoint.load_training(path, *trained(0))
        return
    with pytest.raises(UserError, match=r"optimizer\.safetensors is damaged"):
        checkpoint.load_training(path, *trained(0))


def test_what_an_optimizer_remembers_of_another_model_is_refused(tmp_path):
    path = save(tmp_path)
    save_file({"blocks.7.x/m": torch.ones(2)}, path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"does not fit its config\.json: blocks\.7\.x/m"):
        checkpoint.load_training(path, *trained(0))


@pytest.mark.parametrize("manifest", ['{"files": 1}', "[]", '{"files": {"model.safetensors": 1}}'])
def test_a_checkpoint_that_names_no_weights_is_refused(manifest, tmp_path):
    path = save(tmp_path)
    assert len(checkpoint.weight_hash(path)) == 64
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="does not say which weights it holds"):
        checkpoint.weight_hash(path)
