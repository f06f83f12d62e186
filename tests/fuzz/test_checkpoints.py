"""Checkpoints: every file of theirs, damaged or changed by somebody who knows the format."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.files import as_json as written
from gpt.files.tensors import SavedTensors
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState
from gpt.runs.saved_model import find_model
from gpt.tokenizer import build_tokenizer
from tests.fuzz.inputs import as_json, damaged, fuzzed, is_read, json_files, mutated
from tests.tiny import tiny_gpt
from tests.tiny_runs import optimizer_of

BEST = {"step": 3, "val_loss": 1.5, "ended_at": 4}


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints."""
    model = tiny_gpt(vocab_size=257, n_layer=1, n_embd=16, n_head=2)
    for step in (3, 4):
        checkpoint.save(tmp_path / "run/checkpoints", model, optimizer_of(model),
                        build_tokenizer("byte"), TrainState(step, 10 * step, 1.0))
    (tmp_path / "run/checkpoints/best.json").write_bytes(as_json(BEST))
    return tmp_path / "run"


def seal(folder):
    """Make the manifest fit the files that lie there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(written(manifest))


def resume(run):
    """What a run that goes on reads, and what sampling reads."""
    newest = checkpoint.newest_sound(run / "checkpoints")
    checkpoint.read_best(run / "checkpoints", checkpoint.read_state(newest).step)
    model = tiny_gpt(vocab_size=257, n_layer=1, n_embd=16, n_head=2)
    checkpoint.load_training(newest, model, optimizer_of(model))
    sample(run)


def sample(run):
    for name in (str(run), f"{run}@best", f"{run}@newest", f"{run}@step-4"):
        found = find_model(name)
        model, tokenizer = found.model(), found.tokenizer()
        assert found.weight_hash() and model and tokenizer.decode(tokenizer.encode("Ab c"))


NAMES = ["manifest.json", "state.json", "config.json", "tokenizer/encoding.json",
         "tokenizer/ranks.tiktoken", "model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_that_the_manifest_vouches_for_is_read_or_refused(name, run):
    newest = run / "checkpoints/step-00000004"
    sound = (newest / name).read_bytes()
    resume(run)
    contents = json_files(json.loads(sound)) if name.endswith(".json") else damaged(sound)
    seen = set()

    @fuzzed(12)
    @given(contents)
    def tried(data):
        (newest / name).write_bytes(data)
        if name != "manifest.json":
            seal(newest)
        seen.add(is_read(lambda: resume(run)))

    tried()
    assert False in seen or name == "manifest.json"


@pytest.mark.parametrize("name", ["step-00000004/manifest.json", "best.json"])
def test_any_file_that_says_which_checkpoint_is_passed_over_if_it_is_unsound(name, run):
    sound = run / "checkpoints" / name
    value = json.loads(sound.read_bytes())
    written_again = mutated(value).map(as_json).filter(is_plain).map(
        lambda data: written(json.loads(data)).encode())

    @fuzzed(40)
    @given(st.one_of(json_files(value), written_again))
    def tried(data):
        sound.write_bytes(data)
        assert is_read(lambda: sample_newest(run))

    tried()


def is_plain(data):
    try:
        return bool(written(json.loads(data)))
    except (ValueError, RecursionError):
        return False


def sample_newest(run):
    assert find_model(str(run)).model()
    is_read(lambda: find_model(f"{run}@best"))


def test_any_index_of_weights_is_refused_or_followed_within_the_folder(run):
    newest = run / "checkpoints/step-00000004"
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model-00001-of-00001.safetensors").write_bytes(data)
    whole = dict.fromkeys(SavedTensors(newest / "model.safetensors"),
                          "model-00001-of-00001.safetensors")
    seen = set()

    @fuzzed(60)
    @given(json_files({"metadata": {"total_size": 1}, "weight_map": whole}))
    def tried(data):
        (newest / "model.safetensors.index.json").write_bytes(data)
        seen.add(is_read(lambda: checkpoint.load_model(newest)))

    tried()
    assert seen == {True, False}
