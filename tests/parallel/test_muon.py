"""Muon, AdamW and the average where ranks hold parts or copies: as in one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

import gpt.optim.muon as muon
import gpt.parallel.muon as spread
from gpt.optim import Muon, Optimizer, WeightAverage
from gpt.optim.adamw import AdamW
from gpt.optim.group import Group
from gpt.parallel.muon import spread_muon
from gpt.parallel.parts import whole
from tests.parallel.layouts import CASES, MIXED, laid_out, linear_layers, mesh_of, set_gradients
from tests.parallel.processes import run_ranks

# Square, wide, tall; rows that ranks share unevenly, and fewer rows than ranks.
SHAPES = [(8, 8), (8, 8), (4, 12), (16, 6), (16, 6), (8, 8), (10, 6), (3, 8), (8, 8)]
EVEN = [(8, 8), (8, 8), (8, 8), (8, 8), (4, 12), (4, 12), (16, 8), (16, 8)]


def optimizer_of(layers: nn.Module, rule: Any) -> Optimizer:
    return Optimizer([Group("matrices", list(layers.parameters()), rule, 0.1, 0.2)])


def three_steps(layers: nn.Module, optimizer: Optimizer, average: WeightAverage) -> None:
    for step in range(3):
        set_gradients(list(layers.parameters()), seed=step)
        optimizer.step()
        average.update()


def replicas(layout: str, mesh: Any) -> dist.ProcessGroup | None:
    """The ranks whose plain tensors are equal, or whose DTensors do not say so."""
    return mesh["replicate"].get_group() if layout in ("replicas", "replicate × tensor") else None


def learn(layout: str, rule: Any) -> int:
    """How many matrices this rank orthogonalised in three steps that equal one process's."""
    alone, together = (linear_layers(*SHAPES) for _ in range(2))
    mesh = mesh_of(layout)
    laid_out(together, layout, mesh)
    expected, found = optimizer_of(alone, rule), optimizer_of(together, copy.copy(rule))
    averages = [WeightAverage(layers, optimizer.state, 0.75)
                for layers, optimizer in ((alone, expected), (together, found))]
    three_steps(alone, expected, averages[0])
    spread_muon(found, replicas(layout, mesh))
    done, orthogonalised = [], spread.orthogonalised
    spread.orthogonalised = lambda stack: done.append(len(stack)) or orthogonalised(stack)
    try:
        three_steps(together, found, averages[1])
    finally:
        spread.orthogonalised = orthogonalised
    assert_alike(alone, together, expected, found)
    with averages[0].in_model(), averages[1].in_model():
        assert_alike(alone, together, expected, found)
    return sum(done)


def assert_alike(alone: nn.Module, together: nn.Module, expected: Optimizer,
                 found: Optimizer) -> None:
    for one, other in zip(alone.parameters(), together.parameters(), strict=True):
        # Weights of 1 at most that three steps of 0.2 moved, of which each rounds anew.
        assert_close(whole(other).detach(), one.detach(), rtol=0, atol=2**-19)
        assert expected.state[one].keys() == found.state[other].keys()
        for name, kept in found.state[other].items():
            assert isinstance(kept, DTensor) == (isinstance(other, DTensor) and name != "step")
            assert_close(whole(kept), expected.state[one][name], rtol=2**-20, atol=2**-19)


@pytest.mark.parametrize(("ranks", "layout"), CASES)
def test_three_steps_of_muon_equal_one_process_and_each_matrix_is_dealt_once(ranks, layout):
    done = run_ranks(ranks, learn, layout, Muon(0.9))
    assert sum(done) == 3 * len(SHAPES) and min(done) > 0


@pytest.mark.parametrize(("ranks", "layout"), [*CASES, MIXED])
def test_three_steps_of_adamw_equal_one_process(ranks, layout):
    run_ranks(ranks, learn, layout, AdamW(0.9, 0.95))


def test_matrices_of_several_layouts_are_updated_together():
    """Three are cut; the six plain ones, of which nobody said that ranks hold copies, are not."""
    assert sum(run_ranks(4, learn, "mixed", Muon(0.9))) == 3 * (2 + 2 * 1 + 4 * 6)


def learn_in_bfloat16(layout: str) -> None:
    """As on GPUs: parts travel in the format that is computed in."""
    formats = muon.number_format, spread.number_format
    muon.number_format = spread.number_format = lambda matrix: torch.bfloat16
    exchange, travelled = dist.all_to_all_single, []
    dist.all_to_all_single = lambda out, given, *others, **named: (
        travelled.append(given.dtype) or exchange(out, given, *others, **named))
    try:
        alone, together = (linear_layers(*SHAPES) for _ in range(2))
        laid_out(together, layout, mesh_of(layout))
        optimizers = optimizer_of(alone, Muon(0.9)), optimizer_of(together, Muon(0.9))
        spread_muon(optimizers[1])
        for layers, optimizer in zip((alone, together), optimizers, strict=True):
            set_gradients(list(layers.parameters()), seed=0)
            optimizer.step()
    finally:
        muon.number_format, spread.number_format = formats
        dist.all_to_all_single = exchange
    assert set(travelled) == {torch.bfloat16}
    for one, other in zip(alone.parameters(), together.parameters(), strict=True):
        # A stack of another size may be multiplied in another order: bfloat16's rounding of 0.2.
        assert_close(whole(other).detach(), one.detach(), rtol=0, atol=0.2 * 2**-7)


def test_parts_travel_in_the_format_that_is_computed_in_and_results_stay():
    run_ranks(2, learn_in_bfloat16, "shard")


def sent_bytes(layout: str) -> tuple[int, int]:
    """Bytes that this rank sends to others in one step, and those that broadcasts bring it."""
    mesh = mesh_of(layout)
    layers = laid_out(linear_layers(*EVEN), layout, mesh)
    optimizer = optimizer_of(layers, Muon(0.9))
    spread_muon(optimizer, replicas(layout, mesh))
    set_gradients(list(layers.parameters()), seed=0)
    sent, heard = [], []
    exchange, broadcast = dist.all_to_all_single, dist.broadcast

    def counting_exchange(out: Tensor, given: Tensor, out_sizes: list[int], sizes: list[int],
                          group: Any, async_op: bool) -> Any:
        assert given.numel() == sum(sizes)
        sent.append(given.element_size() * (sum(sizes) - sizes[group.rank()]))
        return exchange(out, given, out_sizes, sizes, group=group, async_op=async_op)

    def counting_broadcast(tensor: Tensor, group: Any, group_src: int, async_op: bool) -> Any:
        heard.append(tensor.nbytes if group_src != group.rank() else 0)
        return broadcast(tensor, group=group, group_src=group_src, async_op=async_op)

    dist.all_to_all_single, dist.broadcast = counting_exchange, counting_broadcast
    try:
        optimizer.step()
    finally:
        dist.all_to_all_single, dist.broadcast = exchange, broadcast
    return sum(sent), sum(heard)


@pytest.mark.parametrize(("ranks", "layout"), CASES)
def test_each_part_travels_to_its_owner_and_back_once(ranks, layout):
    counted = run_ranks(ranks, sent_bytes, layout)
    total = 4 * sum(rows * columns for rows, columns in EVEN)
    copies = {"replicas": ranks, "replicate × shard": 2, "replicate × tensor": 2}.get(layout, 1)
    shards = ranks // copies
    # A replica of the shards exchanges its share of the matrices, and hears of the others' shares.
    assert sum(sent for sent, _ in counted) <= 1.05 * 2 * total * (shards - 1) / shards
    assert sum(heard for _, heard in counted) <= 1.05 * total * (copies - 1)


def rounds_in_order() -> list[str]:
    """What happens in one step, in order."""
    layers = laid_out(linear_layers(*EVEN), "shard", mesh_of("shard"))
    optimizer = optimizer_of(layers, Muon(0.9))
    spread_muon(optimizer)
    set_gradients(list(layers.parameters()), seed=0)
    events: list[str] = []
    exchange, orthogonalised = dist.all_to_all_single, spread.orthogonalised
    dist.all_to_all_single = lambda *given, **named: (events.append("send")
                                                      or exchange(*given, **named))
    spread.orthogonalised = lambda stack: events.append("compute") or orthogonalised(stack)
    try:
        optimizer.step()
    finally:
        dist.all_to_all_single, spread.orthogonalised = exchange, orthogonalised
    return events


def test_the_next_round_is_on_its_way_while_one_is_computed():
    """Three shapes: each is sent for before the one ahead of it is computed."""
    expected = ["send", "send", "compute", "send", "send", "compute", "send", "compute", "send"]
    assert run_ranks(2, rounds_in_order) == [expected] * 2


def test_alone_nothing_is_sent_and_bits_are_those_of_plain_muon():
    layers, others = linear_layers(*SHAPES), linear_layers(*SHAPES)
    for chosen, is_spread in ((layers, False), (others, True)):
        optimizer = optimizer_of(chosen, Muon(0.9))
        if is_spread:
            spread_muon(optimizer)
        three_steps(chosen, optimizer, WeightAverage(chosen, optimizer.state, 0.5))
    for one, other in zip(layers.parameters(), others.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_most_work_is_dealt_out_first_and_to_whoever_has_least():
    one = (slice(None), slice(None))
    large, small = (spread.Layout(torch.Size(shape), [one] * 4, None, None)
                    for shape in ((8, 8), (4, 8)))
    assert spread._deal({small: 4, large: 5}) == {large: [2, 1, 1, 1], small: [0, 2, 1, 1]}
