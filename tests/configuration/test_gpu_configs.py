"""What the headers of configurations for GPUs calculate is what their runs come to."""

from __future__ import annotations

import re

import pytest
import torch

from gpt.configuration import (
    AdapterConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    parse_command_line,
)
from gpt.machine.device import Machine
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.model.lora import adapt
from gpt.training.budget import Budget
from gpt.training.choices import choose_batch_size
from tests.tiny import ROOT

PEAK, SHARE = 989e12, 0.4
CUDA = Machine(torch.device("cuda"), torch.bfloat16)


def header(name: str) -> str:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def number(pattern: str, text: str) -> float:
    return float(re.search(rf"([\d,.]+) {pattern}", text)[1].replace(",", ""))


@pytest.mark.parametrize("name", ["gpt2-124m.yaml", "depth-12.yaml", "depth-20.yaml",
                                  "depth-24.yaml"])
def test_pretraining_comes_to_what_the_header_says(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = header(name)
    config = parse_command_line(PretrainConfig, [f"configs/{name}"], "").config
    assert (ROOT / config.data.dataset).is_file()
    with torch.device("meta"):
        model = GPT(config.model)
    flops, size = flops_per_token(model), config.model.block_size
    sequences = choose_batch_size(config.train, config.model, flops, 0, CUDA)
    train = config.train.model_copy(update={"batch_size": sequences})
    assert parameter_count(model) == number("parameters,", text)
    assert flops == number("FLOPs per token,", text)
    assert sequences * size == number("tokens a step", text)
    assert Budget.of(train, 0, size).steps == number("steps", text)
    hours = flops * config.train.tokens / (PEAK * SHARE * 3600)
    assert number("on one GPU", text) == pytest.approx(hours, rel=0.01)
    assert number("on eight", text) == pytest.approx(hours / 8, abs=0.006)
    assert number("GB", text) == pytest.approx(16 * parameter_count(model) / 1e9, rel=0.01)
    assert "make gpu measures" in text


def qwen3_1_7b() -> ModelConfig:
    """As its config.json describes it."""
    return ModelConfig(vocab_size=151_936, block_size=2048, n_layer=28, n_embd=2048, n_head=16,
                       n_kv_head=8, head_dim=128, n_inner=6144, tie_embeddings=True)


def test_adapters_come_to_what_the_header_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = header("finetune-lora.yaml")
    config = parse_command_line(FinetuneConfig, ["configs/finetune-lora.yaml"], "").config
    assert config.finetune.base == "Qwen/Qwen3-1.7B"
    with torch.device("meta"):
        model = GPT(qwen3_1_7b())
    frozen = parameter_count(model)
    in_layers = sum(weight.numel() for name, weight in model.named_parameters()
                    if name.startswith("blocks") and weight.dim() == 2)
    with torch.device("meta"):
        adapt(model, AdapterConfig(method="lora", **config.lora.model_dump()))
    learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert frozen == number("parameters, of which", text)
    assert learned == number("learn ", text)
    in_float32, with_int8, learning = (float(each) for each in re.findall(r"([\d.]+) GB", text))
    assert in_float32 == pytest.approx(4 * frozen / 1e9, rel=0.01)
    assert with_int8 == pytest.approx((in_layers + 4 * (frozen - in_layers)) / 1e9, rel=0.02)
    assert learning == pytest.approx(16 * learned / 1e9, rel=0.02)
