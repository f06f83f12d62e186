"""Residual sums against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.model.block import Block
from tests.tiny import tiny_config


def numbers(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double() * scale


def drawn(module: nn.Module) -> nn.Module:
    """The module in float64, with weights that are neither zero nor one."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


@pytest.mark.parametrize("residual_scale", [1.0, 0.22])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_block_adds_attention_then_feed_forward_of_the_normalised_stream(norm, residual_scale):
    block = drawn(Block(tiny_config(norm=norm, position="none", residual_scale=residual_scale)))
    x = numbers(2, 6, 32)
    middle = x + residual_scale * block.attention(block.attention_norm(x), None)
    after = middle + residual_scale * block.feedforward(block.feedforward_norm(middle))
    assert_close(block(x, None), after)
    parallel = middle + residual_scale * block.feedforward(block.feedforward_norm(x))
    assert not torch.allclose(block(x, None), parallel, rtol=1e-3)


def test_a_block_hands_its_attention_the_rotation_and_what_is_visible():
    block, x = drawn(Block(tiny_config())), numbers(2, 6, 32)
    rotation = (numbers(6, 1, 4), numbers(6, 1, 4))
    alone = torch.eye(6, dtype=torch.bool)
    with torch.no_grad():
        for chosen in ((rotation, None, None), (None, None, alone), (rotation, None, alone)):
            middle = x + block.attention(block.attention_norm(x), *chosen)
            after = middle + block.feedforward(block.feedforward_norm(middle))
            assert_close(block(x, *chosen), after)
            assert not torch.allclose(block(x, *chosen), block(x, None), rtol=1e-3)


PLACEMENTS = ["before", "after", "both"]
RESIDUALS = ["sequential", "parallel", "parallel_one_norm"]


def by_the_formula(block: Block, x: Tensor, placement: str, residual: str) -> Tensor:
    """What each placement and each form of the residual stands for."""
    def before(norm: nn.Module, y: Tensor) -> Tensor:
        return y if placement == "after" else norm(y)

    def behind(norm: nn.Module, y: Tensor) -> Tensor:
        return y if placement == "before" else norm(y)

    normed = before(block.attention_norm, x)
    middle = x + behind(block.attention_post_norm, block.attention(normed, None))
    if residual == "sequential":
        read = before(block.feedforward_norm, middle)
    elif residual == "parallel":
        read = block.feedforward_norm(x)
    else:
        read = normed
    return middle + behind(block.feedforward_post_norm, block.feedforward(read))


@pytest.mark.parametrize(("placement", "residual"), [
    *((placement, "sequential") for placement in PLACEMENTS),
    ("before", "parallel"), ("before", "parallel_one_norm")])
def test_norms_stand_and_sums_are_taken_where_the_configuration_says(placement, residual):
    block = drawn(Block(tiny_config(norm_placement=placement, residual=residual)))
    x = numbers(2, 6, 32)
    assert_close(block(x, None), by_the_formula(block, x, placement, residual))
    norms = {name for name, _ in block.named_parameters() if "_norm" in name
             and "attention." not in name}
    expected = {"before": {"attention_norm.weight", "feedforward_norm.weight"},
                "after": {"attention_post_norm.weight", "feedforward_post_norm.weight"}}
    expected["both"] = expected["before"] | expected["after"]
    assert norms == expected[placement] - (
        {"feedforward_norm.weight"} if residual == "parallel_one_norm" else set())


def test_each_placement_and_each_form_is_another_function():
    outputs = []
    for placement, residual in (("before", "sequential"), ("before", "parallel"),
                                ("before", "parallel_one_norm"), ("after", "sequential"),
                                ("both", "sequential")):
        torch.manual_seed(0)
        block = Block(tiny_config(norm_placement=placement, residual=residual)).double().eval()
        matrices = [p for p in block.parameters() if p.dim() == 2]
        for i, matrix in enumerate(matrices):  # the same ones in all
            matrix.data = numbers(*matrix.shape, scale=0.3 + i / 10)
        for name, norm in block.named_parameters():
            if norm.dim() == 1:
                norm.data = numbers(*norm.shape, scale=len(name))
        outputs.append(block(numbers(2, 6, 32), None))
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("biases", [[], ["qkv_proj"], ["out_proj", "norm"],
                                    ["up_proj", "down_proj"]])
def test_biases_are_where_the_configuration_says(biases):
    block = Block(tiny_config(norm="layernorm", bias=biases))
    found = {name.split(".")[-2] for name, _ in block.named_parameters() if name.endswith("bias")}
    norms = {"attention_norm", "feedforward_norm"} if "norm" in biases else set()
    assert found == set(biases) - {"norm"} | norms
