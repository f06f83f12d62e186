"""Models by name: when the network is asked, and what is said without one. No test uses one."""

from __future__ import annotations

import huggingface_hub
import pytest

import gpt
from gpt.errors import UserError
from gpt.interop import hub
from gpt.runs.saved_model import find_model
from tests.interop.models import saved


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list:
    """What is asked of the Hub, which cannot be reached; the current folder is empty."""
    calls: list = []

    def unreachable(name, **how):
        calls.append((name, how))
        raise ConnectionError("no route to host")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    return calls


def test_without_a_network_the_error_tells_the_way_round_it(asked):
    with pytest.raises(UserError) as refusal:
        gpt.load("openai-community/gpt2")
    assert str(refusal.value) == (
        "openai-community/gpt2 is no folder here, and could not be fetched from the Hugging Face "
        "Hub (ConnectionError); where there is a network, run: hf download openai-community/gpt2 "
        "--local-dir FOLDER, bring FOLDER here, and give its path")
    assert [name for name, _ in asked] == ["openai-community/gpt2"]


def test_only_safetensors_json_and_text_are_fetched(asked):
    with pytest.raises(UserError):
        find_model("a/b")
    assert asked[0][1]["allow_patterns"] == hub.FILES
    import fnmatch

    def fetched(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in hub.FILES)
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.json",
                 "model.safetensors.index.json", "merges.txt", "chat_template.jinja",
                 "generation_config.json", "special_tokens_map.json", "tokenizer_config.json",
                 "added_tokens.json", "model.safetensors"):
        assert fetched(name), name
    for name in ("pytorch_model.bin", "model.pth", "modeling_custom.py", "tokenizer.model",
                 "training_args.bin", "onnx/model.onnx", "consolidated.safetensors",
                 "tf_model.h5", "original/consolidated.00.pth"):
        assert not fetched(name), name


@pytest.mark.parametrize("name", [
    "runs/typo", "runs/base-2", "./a/b", "../a/b", "/a/b", "a", "a/b/c", "a/b/", "~/b", "a/.b",
    "models/typo", "a b/c", "a/b\n", "", "gpt2", "a\\b", "https://huggingface.co/a/b"])
def test_a_mistyped_path_never_asks_the_network(name, asked, tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError):
        find_model(name)
    assert asked == []


def test_a_folder_of_that_name_comes_before_the_network(asked, tmp_path):
    theirs, _ = saved("gpt2", tmp_path / "openai-community/gpt2")
    found = find_model("openai-community/gpt2")
    assert not found.is_ours and found.config().n_embd == theirs.config.n_embd
    assert asked == []


def test_what_was_fetched_is_read(monkeypatch, tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: str(folder))
    monkeypatch.chdir(tmp_path)
    assert find_model("some/model").path == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no safetensors; .*convert .*from_pretrained.* so"):
        find_model("some/model")
