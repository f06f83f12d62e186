"""python -m gpt env: what is installed, what computes, what a model costs."""

from __future__ import annotations

import pytest
import torch

from gpt.__main__ import main
from gpt.errors import UserError
from gpt.model import flops_per_token, parameter_count
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.tiny import tiny_gpt


def facts(capsys, *arguments: str) -> dict[str, str]:
    main(["env", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return {line[:14].strip(): line[15:] for line in lines}


def test_it_tells_versions_and_hardware(capsys):
    told = facts(capsys)
    assert f"torch {torch.__version__}" in told["packages"]
    assert "threads" in told["device"] or "nvidia" in told["device"].lower()
    assert float(told["memory"].split()[0]) > 0.1
    speed = told["products"].split()
    assert speed[0] == "float32" and float(speed[1].replace(",", "")) > 0.1


@pytest.mark.parametrize(("device", "compiled", "told"), [
    ("cpu", True, "gpt/generation/native"), ("cpu", False, "torch"), ("mps", True, "torch"),
    ("cuda", True, "CUDA graphs")])
def test_it_tells_what_generates(device, compiled, told, monkeypatch):
    from gpt.machine.device import Machine
    from gpt.verbs import environment
    monkeypatch.setattr(environment, "library", lambda: compiled or None)
    machine = Machine(torch.device(device), torch.float32)
    assert environment.new_tokens_by(machine).startswith(told)


def test_packages_that_are_missing_are_named(capsys, monkeypatch):
    from gpt.verbs import environment
    monkeypatch.setattr(environment, "package_version",
                        lambda name: None if name == "gguf" else "1.0")
    told = facts(capsys)
    assert told["not installed"] == "gguf" and "gguf" not in told["packages"]


def test_it_tells_what_a_checkpoint_costs(capsys, tmp_path):
    model = tiny_gpt(vocab_size=300)
    checkpoint.save_model(tmp_path / "m", model, build_tokenizer("byte"), imported_from="here")
    told = facts(capsys, str(tmp_path / "m"))
    assert told["model"] == (f"{parameter_count(model):,} parameters, {flops_per_token(model):,} "
                             "FLOPs per token")
    # A run of 20 tokens a parameter, in steps of twice their root: 1,935 tokens = 60 · 32.
    assert 2 * (20 * parameter_count(model)) ** 0.5 / 32 == pytest.approx(60, abs=8)
    assert told["training"].startswith("micro-batches of 64 x 32 tokens, memory in MiB")


def test_it_tells_what_a_configuration_costs(capsys, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("data: {dataset: x}\nmodel: {preset: gpt2, vocab_size: 50257}\n"
                    "train: {micro_batch_size: 2}\n")
    told = facts(capsys, str(path))
    assert told["model"].startswith("124,439,808 parameters")
    assert told["training"].startswith("micro-batches of 2 x 1024 tokens")


def test_a_configuration_without_a_vocabulary_is_explained(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("data: {dataset: x}\n")
    with pytest.raises(UserError, match=r"leaves model\.vocab_size to its dataset"):
        main(["env", str(path)])
