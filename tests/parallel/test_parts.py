"""Whole tensors and their parts: a round trip is exact, in every layout."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing import assert_close

from gpt.parallel.parts import fill, whole
from tests.parallel.layouts import CASES, laid_out, linear_layers, mesh_of
from tests.parallel.processes import run_ranks

# Rows and columns: even, uneven, fewer than ranks; FSDP2 itself cuts rows alone.
SHAPES = [(8, 4), (10, 6), (7, 5), (3, 8), (1, 2)]


def round_trip(layout: str) -> list[tuple[int, ...]]:
    """The shapes of this rank's parts."""
    expected = [p.detach().clone() for p in linear_layers(*SHAPES, bias=True).parameters()]
    layers = laid_out(linear_layers(*SHAPES, bias=True), layout, mesh_of(layout))
    others = laid_out(linear_layers(*SHAPES, bias=True, seed=1), layout, mesh_of(layout))
    for weight, other, all_of_it in zip(layers.parameters(), others.parameters(), expected,
                                        strict=True):
        assert_close(whole(weight), all_of_it, rtol=0, atol=0)      # as torch cut it
        assert not torch.equal(whole(other), all_of_it)
        fill(other, all_of_it)
        assert_close(whole(other), all_of_it, rtol=0, atol=0)       # and as we do
    return [tuple(getattr(p, "to_local", p.detach)().shape) for p in layers.parameters()]


@pytest.mark.parametrize(("ranks", "layout"), CASES)
def test_parts_make_the_whole_and_the_whole_fills_the_parts(ranks, layout):
    shapes = run_ranks(ranks, round_trip, layout)
    if layout == "shard":
        assert any(0 in shape for shape in shapes[-1])  # the last rank had none of some weight
    if layout != "replicas":
        assert shapes[0] != [tuple(p.shape) for p in linear_layers(*SHAPES, bias=True).parameters()]


def kinds() -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    for values in (torch.arange(30).view(5, 6), torch.randn(3, 5, 2).bfloat16(),
                   torch.arange(15).view(5, 3) % 2 == 0):
        for placements in ([Shard(0), Shard(0)], [Shard(1), Shard(0)], [Shard(1), Shard(1)],
                           [Replicate(), Shard(1)], [Shard(0), Replicate()]):
            dist.broadcast(values, 0)
            tensor = distribute_tensor(values, mesh, placements)
            assert torch.equal(whole(tensor), values)
            tensor.to_local().zero_()
            fill(tensor, values)
            assert torch.equal(whole(tensor), values)
    scalar = distribute_tensor(torch.tensor(3.0), mesh, [Replicate(), Replicate()])
    fill(scalar, torch.tensor(4.0))
    assert whole(scalar) == 4 and whole(scalar).shape == ()


def test_any_number_of_dimensions_and_any_format_is_cut_and_joined():
    run_ranks(4, kinds)


def test_a_plain_tensor_is_its_own_whole():
    tensor = nn.Parameter(torch.zeros(3))
    assert whole(tensor) is tensor
    fill(tensor, torch.ones(3))
    assert torch.equal(tensor.detach(), torch.ones(3))
    with pytest.raises(AssertionError, match="is no"):
        fill(tensor, torch.ones(1))


def from_a_file(path: str) -> None:
    weight = laid_out(linear_layers((4096, 4)), "shard", mesh_of("shard"))[0].weight
    mapped = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r+", shape=(4096, 4)))
    dist.barrier()
    if dist.get_rank() == 0:
        os.truncate(path, mapped.nbytes // 2)  # reading beyond would end the process
        fill(weight, mapped)
        assert torch.equal(weight.to_local().detach(), torch.arange(8192.0).view(2048, 4))


def test_of_a_mapped_file_only_the_part_is_read(tmp_path):
    np.arange(4096 * 4, dtype=np.float32).tofile(tmp_path / "whole")
    run_ranks(2, from_a_file, str(tmp_path / "whole"))
