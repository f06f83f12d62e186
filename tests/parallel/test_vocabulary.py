"""The loss of a vocabulary that is spread over ranks, against that of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing import assert_close

from gpt.batches import IGNORE
from gpt.parallel import vocabulary
from gpt.parallel.vocabulary import Part
from gpt.training import cross_entropy
from gpt.training.cross_entropy import summed_cross_entropy, token_cross_entropy
from tests.parallel.processes import run_ranks

N, C, V = 37, 16, 61  # 31 and 30 tokens on two ranks


def given(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(N, C, generator=generator)
    weight = torch.randn(V, C, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORE
    targets[1], targets[2], targets[3] = 30, 31, V - 1  # where parts begin and end
    return x.requires_grad_(), nn.Parameter(weight), targets


def losses(kind: str, softcap: float | None, rows: int, scale: float, fused: bool = False) -> Any:
    """Loss and gradients by x and the weight, in one process or spread over all."""
    x, weight, targets = given(scale)
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))
        part = weight.detach().chunk(mesh.size())[mesh.get_local_rank()]
        weight = nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False,
                                                 shape=weight.shape, stride=weight.stride()))
    width = -(-V // (dist.get_world_size() if dist.is_initialized() else 1))
    cross_entropy.CHUNK_FLOATS, before = rows * width, cross_entropy.CHUNK_FLOATS
    try:
        if kind == "summed":
            loss = summed_cross_entropy(x, weight, targets, softcap, fused=fused)
            (loss / 7).backward()
        else:
            loss = token_cross_entropy(x, weight, targets, softcap)
            (loss * torch.arange(N)).sum().backward()
    finally:
        cross_entropy.CHUNK_FLOATS = before
    grad = weight.grad
    return loss.detach(), x.grad, grad.full_tensor() if isinstance(grad, DTensor) else grad


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("kind", ["summed", "by token"])
def test_loss_and_gradients_are_those_of_one_process(kind, rows, softcap):
    expected = losses(kind, softcap, rows, 1.0)
    for found in run_ranks(2, losses, kind, softcap, rows, 1.0):
        # Sums of at most 61 products of order 1, weighted with up to 37.
        assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert expected[1].abs().max() > 0.1


def test_scores_in_the_hundreds_neither_overflow_nor_vanish():
    expected = losses("summed", None, 1000, 300.0)
    for found in run_ranks(2, losses, "summed", None, 1000, 300.0):
        assert all(each.isfinite().all() for each in found)
        # Scores of up to 2,000 are rounded to 1e-4, and their exponentials by as large a share.
        assert_close(found, expected, rtol=1e-3, atol=1e-2)


def fused_losses() -> Any:
    compiled: list[Any] = []
    real, torch.compile = torch.compile, lambda f: compiled.append(f) or f
    try:
        return losses("summed", 3.0, 1000, 1.0, fused=True), compiled
    finally:
        torch.compile = real
        vocabulary._compiled.cache_clear()


def test_a_fused_loss_goes_through_the_compiler():
    expected = losses("summed", 3.0, 1000, 1.0)
    for found, compiled in run_ranks(2, fused_losses):
        assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert compiled == [vocabulary._sums, vocabulary._slope]


def in_bfloat16() -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return losses("summed", None, 1000, 1.0)


def test_under_autocast_products_are_in_its_format_and_gradients_in_float32():
    exact = losses("summed", None, 1000, 1.0)
    for loss, grad_x, grad_weight in run_ranks(2, in_bfloat16):
        assert loss.dtype == grad_x.dtype == grad_weight.dtype == torch.float32
        assert_close(loss, exact[0], rtol=1e-2, atol=0)
        assert loss != exact[0]
        assert_close(grad_weight, exact[2], rtol=0.05, atol=0.05)  # bfloat16 has 8 digits
        assert_close(grad_x, exact[1], rtol=0.05, atol=0.05)


def evaluated() -> Any:
    with torch.inference_mode():
        x, weight, targets = given()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",))
        part = weight.detach().chunk(2)[mesh.get_local_rank()]
        weight = DTensor.from_local(part, mesh, [Shard(0)], run_check=False,
                                    shape=weight.shape, stride=weight.stride())
        return summed_cross_entropy(x, weight, targets)


def test_without_gradients_the_loss_is_the_same():
    expected = summed_cross_entropy(*given()).detach()
    for loss in run_ranks(2, evaluated):
        assert_close(loss, expected, rtol=1e-6, atol=0)


def looked_up(tokens: Tensor) -> Any:
    table = torch.arange(V * 2, dtype=torch.float32).view(V, 2)
    part = Part(V, dist.group.WORLD)
    rows = table[part.start:part.start + part.width].requires_grad_()
    vectors = part.look_up(tokens, rows)
    vectors.sum().backward()
    return vectors.detach(), (part.start, part.width), rows.grad[:, 0]


def test_every_token_is_looked_up_where_it_lies():
    tokens = torch.tensor([[0, 30, 31, 60], [60, 60, 5, 40]])
    expected = torch.arange(V * 2, dtype=torch.float32).view(V, 2)[tokens]
    found = run_ranks(2, looked_up, tokens)
    for vectors, _, _ in found:
        assert_close(vectors, expected, rtol=0, atol=0)
    assert [place for _, place, _ in found] == [(0, 31), (31, 30)]
    counts = torch.cat([grad for _, _, grad in found])
    assert_close(counts, torch.bincount(tokens.flatten(), minlength=V).float(), rtol=0, atol=0)


def test_a_weight_of_one_process_is_not_spread():
    assert not vocabulary.is_spread(nn.Parameter(torch.zeros(3, 2)))
