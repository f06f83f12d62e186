"""The norm of a gradient over all ranks, clipping by it, overflows: as in one process."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.optim import local_part
from gpt.optim.build import Optimizer
from gpt.optim.group import Group
from gpt.optim.muon import Muon
from gpt.parallel.gradients import clip_gradients, clip_kinds, spread_overflow
from gpt.parallel.parts import whole
from tests.parallel.layouts import CASES, MIXED, laid_out, linear_layers, mesh_of, set_gradients
from tests.parallel.processes import run_ranks

SHAPES = [(8, 4), (4, 8), (6, 4), (4, 4)]


def layers_of(layout: str) -> list[nn.Parameter]:
    """Weights and biases in a layout."""
    layers = linear_layers(*SHAPES, bias=True)
    return list(laid_out(layers, layout, mesh_of(layout)).parameters())


def expected_clip(wholes: list[Tensor], limit: float) -> tuple[Tensor, list[Tensor]]:
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in wholes]
    for weight, gradient in zip(weights, wholes, strict=True):
        weight.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(weights, limit)
    return norm, [weight.grad for weight in weights]


def clip(layout: str, limit: float) -> None:
    weights = layers_of(layout)
    norm, clipped = expected_clip(set_gradients(weights, seed=1), limit or math.inf)
    assert_close(clip_gradients(weights, limit), norm, rtol=2**-22, atol=0)
    for weight, gradient in zip(weights, clipped, strict=True):
        assert_close(whole(weight.grad), gradient, rtol=2**-22, atol=0)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
@pytest.mark.parametrize(("ranks", "layout"), [*CASES, MIXED])
def test_norm_and_clipped_gradients_are_those_of_one_process(ranks, layout, limit):
    run_ranks(ranks, clip, layout, limit)


def clip_in_kinds(layout: str) -> None:
    weights = layers_of(layout)
    wholes = set_gradients(weights, seed=1)
    kinds = {"first": slice(0, 3), "none": slice(0, 0), "rest": slice(3, None)}
    norm, norms = clip_kinds({name: weights[part] for name, part in kinds.items()}, 0.5,
                             weights[0].device)
    expected, clipped = expected_clip(wholes, 0.5)
    assert_close(norm, expected, rtol=2**-22, atol=0)
    assert norms.keys() == kinds.keys() and not norms["none"]
    for name, part in kinds.items():
        assert_close(norms[name], torch.cat([torch.zeros(1), *(whole.flatten() for whole
                                                               in wholes[part])]).norm(),
                     rtol=2**-22, atol=0)
    for weight, gradient in zip(weights, clipped, strict=True):
        assert_close(whole(weight.grad), gradient, rtol=2**-22, atol=0)


@pytest.mark.parametrize(("ranks", "layout"), [*CASES, MIXED])
def test_the_norm_of_each_kind_of_weights_is_that_of_one_process(ranks, layout):
    run_ranks(ranks, clip_in_kinds, layout)


def spoil(layout: str, bad: float, at: int) -> float:
    """The norm where one rank has one number that is not finite."""
    weights = layers_of(layout)
    set_gradients(weights, seed=1)
    if dist.get_rank() == at:
        local_part(weights[0].grad).view(-1)[0] = bad
    return clip_gradients(weights, 1.0).item()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("ranks", "layout"), [(2, "shard"), (2, "tensor, columns"),
                                               (4, "shard × tensor, rows"), MIXED])
def test_one_number_that_is_not_finite_makes_the_norm_so_on_every_rank(ranks, layout, bad):
    norms = run_ranks(ranks, spoil, layout, bad, ranks - 1)
    assert not any(math.isfinite(norm) for norm in norms)
    assert all(math.isfinite(norm) for norm in run_ranks(ranks, spoil, layout, 0.0, ranks - 1))


def collectives() -> int:
    weights, calls, all_reduce = layers_of("mixed"), [], dist.all_reduce
    set_gradients(weights, seed=1)
    dist.all_reduce = lambda *given, **named: calls.append(1) or all_reduce(*given, **named)
    try:
        clip_gradients(weights, 1.0)
    finally:
        dist.all_reduce = all_reduce
    return len(calls)


def test_one_collective_for_each_dimension_that_cuts_weights():
    assert run_ranks(4, collectives) == [2] * 4


def stages() -> tuple[float, Tensor]:
    """Each rank has a stage of its own, and both hold the tied weight."""
    own, tied = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    own.grad, tied.grad = torch.full((3,), 1.0 + dist.get_rank()), torch.full((3,), 3.0)
    elsewhere = {tied} if dist.get_rank() == 1 else set()
    norm = clip_gradients([own, tied], 1.0, stages=dist.group.WORLD, counted_elsewhere=elsewhere)
    return norm.item(), tied.grad


def test_stages_of_a_pipeline_add_up_and_a_tied_weight_counts_once():
    norm = math.sqrt(3 * (1 + 4 + 9))
    for found, tied in run_ranks(2, stages):
        assert found == pytest.approx(norm, rel=1e-6)
        assert_close(tied, torch.full((3,), 3 / norm))  # scaled on both


def overflow(layout: str, bad: float, at: int, of_stages: bool) -> tuple[list[bool], bool, bool]:
    """(are all its gradients finite, are they as before, does float16's scaler find them so)."""
    weights = layers_of(layout)
    set_gradients(weights, seed=1)
    parts = [local_part(weight.grad) for weight in weights]
    if dist.get_rank() == at:
        parts[0].view(-1)[0] = bad
    before = [part.clone() for part in parts]
    spread_overflow(weights, stages=dist.group.WORLD if of_stages else None)
    finite = [bool(part.isfinite().all()) for part in parts if part.numel()]
    same = all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = Optimizer([Group("all", weights, Muon(0.9), 0.1, 0.0)])
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    found = scaler._found_inf_per_device(optimizer)
    if same:
        assert all(torch.equal(part * 2**16, old) for part, old in zip(parts, before, strict=True))
    return finite, same, not any(value.item() for value in found.values())


@pytest.mark.parametrize(("ranks", "layout", "of_stages"), [
    (2, "shard", False), (2, "tensor, columns", False), (2, "replicas", True),
    (4, "shard × tensor, rows", False), (*MIXED, False)])
def test_an_overflow_on_one_rank_becomes_one_on_all(ranks, layout, of_stages):
    for bad in (math.inf, math.nan):
        for finite, _, sound in run_ranks(ranks, overflow, layout, bad, ranks - 1, of_stages):
            assert not any(finite) and not sound
    # A number whose square would overflow is finite.
    for finite, same, sound in run_ranks(ranks, overflow, layout, 2.0**100, 0, of_stages):
        assert all(finite) and same and sound
