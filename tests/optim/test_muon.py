"""Muon: every singular value of an update near 1, and the rule around it, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.optim.group import State
from gpt.optim.muon import NEWTON_SCHULZ, Muon, orthogonalised

SHAPES = [(16, 16), (48, 16), (16, 48), (3, 200), (200, 3), (1, 7), (7, 1)]

# The three iterations lift a small singular value by their slope at zero, and its rounding with it.
SLOPE = math.prod(a for a, _, _ in NEWTON_SCHULZ)
ROUNDING = SLOPE * 2**-23


def brought_near_one(values: Tensor) -> Tensor:
    """What the iteration does to a singular value, as a share of the matrix's norm."""
    for a, b, c in NEWTON_SCHULZ:
        values = a * values + b * values**3 + c * values**5
    return values


def from_decomposition(matrix: Tensor) -> Tensor:
    """U f(S) Vᵀ in float64."""
    U, S, Vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U @ torch.diag(brought_near_one(S / S.norm())) @ Vt


def matrices(*shape: int, count: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def with_singular_values(values: Tensor, rows: int, columns: int) -> Tensor:
    U, _, Vt = torch.linalg.svd(matrices(rows, columns)[0], full_matrices=False)
    return U @ torch.diag(values) @ Vt


def test_three_iterations_bring_what_is_above_0_015_between_0_38_and_1_25():
    shares = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    brought = brought_near_one(shares)
    above = brought[shares >= 0.015]
    assert 0.38 < above.min() < 0.39 and 1.24 < above.max() < 1.25  # as near as the comment says
    assert (brought[1:] > 0).all()  # none is turned around
    assert brought[shares < 0.006].max() < 0.38


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_come_out_within_the_bounds(shape):
    for matrix in matrices(*shape):
        shares = torch.linalg.svdvals(matrix.double()) / matrix.double().norm()
        brought = torch.linalg.svdvals(orthogonalised(matrix[None])[0].double())
        assert brought[shares >= 0.015].min() > 0.38 and brought.max() < 1.25


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_directions_stay_and_singular_values_alone_change(shape):
    stack = torch.stack(matrices(*shape))
    expected = torch.stack([from_decomposition(matrix) for matrix in stack])
    assert_close(orthogonalised(stack).double(), expected, rtol=0, atol=ROUNDING)
    assert (expected - stack / stack.norm(dim=(-2, -1), keepdim=True)).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e8])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    (matrix,) = matrices(12, 20, count=1)
    # 1e-7 beside the norm keeps a gradient of zeros finite; it is that share of the smallest norm.
    allowed = ROUNDING + SLOPE * 1e-7 / float(scale * matrix.norm())
    assert_close(orthogonalised(scale * matrix[None]), orthogonalised(matrix[None]),
                 rtol=0, atol=allowed)


def test_an_update_has_the_rank_of_its_gradient_and_zeros_stay_zeros():
    values = torch.tensor([1.0, 0.5, 0.05, 0.0, 0.0, 0.0])
    update = orthogonalised(with_singular_values(values, 6, 9)[None])[0]
    found = torch.linalg.svdvals(update.double())
    assert (found[:3] > 0.38).all() and (found[3:] < ROUNDING).all()
    assert not orthogonalised(torch.zeros(2, 4, 8)).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stack_is_updated_like_one_matrix_at_a_time(shape):
    together, alone = ([nn.Parameter(m) for m in matrices(*shape)] for _ in range(2))
    state, own, rule = State(), State(), Muon(0.9)
    for step in range(3):
        for i, gradient in enumerate(matrices(*shape, seed=1 + step)):
            together[i].grad, alone[i].grad = gradient, gradient.clone()
        with torch.no_grad():
            rule.update(list(together), state, 0.1, 0.1)
            for matrix in alone:
                rule.update([matrix], own, 0.1, 0.1)
    for one, other in zip(together, alone, strict=True):
        # Three steps of 0.1 · √(rows / columns), each rounded as above.
        moved = 3 * 0.1 * max(1, shape[0] / shape[1])**0.5
        assert_close(one, other, rtol=0, atol=moved * ROUNDING)
        assert_close(state[one]["momentum"], own[other]["momentum"], rtol=2**-22, atol=0)
    assert not torch.equal(together[0], together[1])


def test_matrices_of_several_shapes_are_each_updated_by_their_own_gradient():
    found = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 8), (8, 4), (4, 8), (6, 6))]
    for i, matrix in enumerate(found):
        matrix.grad = matrices(*matrix.shape, count=1, seed=i)[0]
    with torch.no_grad():
        Muon(0.0).update(list(found), State(), 1.0, 0.0)
    for matrix in found:
        factor = max(1.0, matrix.size(0) / matrix.size(1))**0.5
        assert_close(matrix.double(), -factor * from_decomposition(matrix.grad), rtol=0,
                     atol=2 * ROUNDING)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (27, 3)], ids=str)
def test_three_steps_equal_nesterov_momentum_and_decay_written_out(shape):
    """Tall matrices move √(rows / columns) times as far; square and wide ones the plain rate."""
    lr, weight_decay, kept, factor = 0.2, 0.25, 0.9, max(1.0, shape[0] / shape[1])**0.5
    (start,) = matrices(*shape, count=1)
    weight, state = nn.Parameter(start.clone()), State()
    expected, average = start.double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(3):
        weight.grad = matrices(*shape, count=1, seed=1 + step)[0]
        with torch.no_grad():
            Muon(kept).update([weight], state, lr, weight_decay)
        gradient = weight.grad.double()
        average = kept * average + (1 - kept) * gradient
        ahead = (1 - kept) * gradient + kept * average
        expected = (1 - lr * weight_decay) * expected - lr * factor * from_decomposition(ahead)
        # The rate's rounding of every step so far, and that of the weights themselves.
        allowed = (step + 1) * (lr * factor * 2 * ROUNDING + 2**-22)
        assert_close(weight.double(), expected, rtol=0, atol=allowed)
    assert_close(state[weight]["momentum"].double(), average, rtol=0, atol=2**-21)


def test_momentum_and_decay_are_seen():
    """Negative control: each of the two changes where three steps lead."""
    def after_three_steps(momentum: float, weight_decay: float) -> Tensor:
        weight, state = nn.Parameter(matrices(6, 9)[0]), State()
        for step in range(3):
            weight.grad = matrices(6, 9, count=1, seed=1 + step)[0]
            with torch.no_grad():
                Muon(momentum).update([weight], state, 0.2, weight_decay)
        return weight.detach()

    usual = after_three_steps(0.9, 0.25)
    for other in (after_three_steps(0.0, 0.25), after_three_steps(0.9, 0.0)):
        assert (other - usual).abs().max() > 0.01


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_cuda_bfloat16_keeps_the_bounds_up_to_its_rounding(shape):
    for matrix in matrices(*shape):
        brought = orthogonalised(matrix[None].cuda())[0]
        assert brought.dtype == torch.bfloat16
        shares = torch.linalg.svdvals(matrix.double()) / matrix.double().norm()
        found = torch.linalg.svdvals(brought.double().cpu())
        # bfloat16 rounds what is near 1 by up to 2^-8, in each of three iterations.
        assert found[shares >= 0.015].min() > 0.38 - 2**-6 and found.max() < 1.25 + 2**-6
