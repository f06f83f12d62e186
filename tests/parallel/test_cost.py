"""What a layout costs: memory compared with tensors on processes, time with paper."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from gpt.machine.hardware import GPU_PEAKS
from gpt.model import activation_bytes, flops_per_token
from gpt.parallel import cost as costs
from gpt.parallel.cost import DEVICES, PRODUCT_SHARE, Device, cost, memory_by_kind
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import Sizes
from gpt.parallel.traffic import Work, bytes_by_axis
from gpt.training import cross_entropy, plan
from tests.parallel.processes import run_ranks
from tests.parallel.test_traffic import loss_of, sharded
from tests.tiny import random_tokens, tiny_config, tiny_gpt
from tests.tiny_runs import rates

H100 = DEVICES["H100"]


def local_bytes(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def held(sizes: Sizes, work: Work, changes: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes of weights, gradients and AdamW's two states on this rank, after a step."""
    model = sharded(tiny_gpt(**changes).train(), sizes, work)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    loss_of(model, random_tokens(1, 8)).backward()
    gradients = sum(local_bytes(p.grad) for p in model.parameters() if p.grad is not None)
    optimizer.step()
    states = sum(local_bytes(tensor) for state in optimizer.state.values()
                 for tensor in state.values() if tensor.dim())
    return sum(local_bytes(p) for p in model.parameters()), gradients, states


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "vocab_size": 63}], ids=str)
@pytest.mark.parametrize("sizes", [Sizes(shard=2), Sizes(shard=4), Sizes(replicate=2, shard=2)],
                         ids=str)
def test_the_fullest_rank_holds_what_is_calculated(sizes, changes):
    work = Work(sequences=sizes.data)
    by_rank = run_ranks(sizes.world_size, held, sizes, work, changes)
    kinds = memory_by_kind(tiny_gpt(**changes), sizes, work)
    assert max(by_rank) == (kinds["weights"], kinds["gradients"], kinds["optimizer"])
    assert min(by_rank) < max(by_rank)  # as 61 and 63 rows are not shared out evenly


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_whole_copy_holds_what_the_plan_of_one_process_says(name, averaged):
    """Which tests/training/test_plan.py compares with what an optimizer keeps."""
    work = Work(sequences=2, micro_batch=2, number_bytes=4, optimizer=name, averaged=averaged)
    planned = plan.memory_by_kind(tiny_gpt(), rates(name, ema_decay=0.9 if averaged else None), 64)
    assert memory_by_kind(tiny_gpt(), Sizes(replicate=4), work) == planned | {"gathered": 0}


@pytest.mark.parametrize("vocab_size", [64, 1024])
def test_what_is_gathered_is_two_layers_and_what_stands_around_them(vocab_size):
    model = tiny_gpt(vocab_size=vocab_size)
    block = sum(p.numel() for p in model.blocks[0].parameters())
    around = sum(p.numel() for p in model.parameters()) - 2 * block
    for number_bytes in (2, 4):
        kinds = memory_by_kind(model, Sizes(shard=4), Work(4, number_bytes=number_bytes))
        assert kinds["gathered"] == number_bytes * (around + 2 * block) + 4 * max(block, around)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() > 1)
    assert memory_by_kind(model, Sizes(), Work(4))["gathered"] == 2 * matrices


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_divided_by_what_divides_tokens_layers_and_matrices(recompute):
    def kept(**sizes: int) -> int:
        work = Work(sequences=8, micro_batch=2, recompute=recompute)
        return memory_by_kind(tiny_gpt(n_layer=4), Sizes(**sizes), work)["activations"]

    whole = activation_bytes(tiny_config(n_layer=4), recompute) * 2 * 32
    assert kept() == kept(shard=4) == whole
    assert kept(context=4) == whole / 4
    vectors = 4 * 32 * (4 + 2 if recompute else 2 * 4) * 2 * 32  # that tensor leaves whole
    assert kept(tensor=4) == vectors + (whole - vectors) / 4
    stage = activation_bytes(tiny_config(n_layer=2), recompute) * 2 * 32
    assert kept(pipeline=2) == 2 * stage  # two micro-batches alive, of half the layers


def test_the_loss_is_taken_to_be_cut_as_it_is():
    assert costs.SCORES_AT_A_TIME == cross_entropy.CUDA_CHUNK_FLOATS
    large = without_memory(tiny_config(vocab_size=50_304, block_size=8192))
    work = Work(sequences=1)
    assert memory_by_kind(large, Sizes(), work)["logits"] == 4 * (2 * 2**27 + 50_304 * 32)


# ----- Time

SLOW = Device("H100", 1, within=1e3, between=1e2, per_host=4)  # traffic is all that counts
FAST = Device("H100", 1, within=1e30, between=1e30, per_host=4)


@pytest.fixture(autouse=True)
def _no_latency(request, monkeypatch):
    if "latency" not in request.node.name:
        monkeypatch.setattr(costs, "HOP_WITHIN", 0.0)
        monkeypatch.setattr(costs, "HOP_BETWEEN", 0.0)


def test_one_device_computes_at_the_assumed_share_of_its_peak():
    model = tiny_gpt()
    found = cost(model, Sizes(), Work(sequences=4), H100)
    assert found.utilisation == pytest.approx(PRODUCT_SHARE, rel=1e-12)
    assert found.seconds == pytest.approx(
        flops_per_token(model) * 4 * 32 / (PRODUCT_SHARE * GPU_PEAKS["H100"]), rel=1e-12)
    again = cost(model, Sizes(), Work(sequences=4, recompute=True), H100)
    assert again.utilisation == pytest.approx(PRODUCT_SHARE * 3 / 4, rel=1e-12)


def test_stages_are_idle_for_the_bubble():
    found = cost(tiny_gpt(n_layer=4), Sizes(pipeline=4), Work(sequences=8), FAST)
    assert found.utilisation == pytest.approx(PRODUCT_SHARE * (1 - 3 / (8 + 3)), rel=1e-9)


@pytest.mark.parametrize(("sizes", "rate"), [
    (Sizes(tensor=4), 1e3),            # in a host
    (Sizes(tensor=8), 4 * 1e2),        # four of a host, a card each
    (Sizes(replicate=2, tensor=4), None)])
def test_what_nothing_hides_takes_bytes_over_bandwidth(sizes, rate):
    found = cost(tiny_gpt(), sizes, Work(sequences=2), SLOW)
    computing = cost(tiny_gpt(), sizes, Work(sequences=2), FAST).seconds
    sent = bytes_by_axis(found.transfers)
    # Copies are a host apart: a card each.
    expected = sum(sent[axis] / (rate or {"tensor": 1e3, "replicate": 1e2}[axis]) for axis in sent)
    assert found.seconds == pytest.approx(computing + expected, rel=1e-6)


def test_gathering_hides_behind_computing_but_for_a_layer():
    model = tiny_gpt()
    once = cost(model, Sizes(shard=2), Work(sequences=2), FAST).seconds
    sent = sum(bytes_by_axis(cost(model, Sizes(shard=2), Work(sequences=2), FAST).transfers)
               .values())
    for needed in (0.2 * once, 0.9 * once, 5 * once):
        device = dataclasses.replace(SLOW, within=sent / needed)
        found = cost(model, Sizes(shard=2), Work(sequences=2), device)
        assert found.seconds == pytest.approx(max(once + needed / 2, needed), rel=1e-6)


def test_copies_hide_their_gradients_behind_the_last_backward_pass_alone():
    model, sizes = tiny_gpt(), Sizes(replicate=2)
    sent = 4 * sum(p.numel() for p in model.parameters())
    for m in (1, 4):
        work = Work(sequences=2 * m)
        once = cost(model, sizes, work, FAST).seconds
        device = dataclasses.replace(SLOW, within=sent / (10 * once))
        assert cost(model, sizes, work, device).seconds == pytest.approx(
            once * (11 - 2 / 3 / m), rel=1e-6)


def test_latency_is_a_ring_of_hops_or_for_sums_a_tree_of_hosts():
    model, endless = tiny_gpt(), dataclasses.replace(FAST, per_host=8)

    def seconds(kind: str, devices: int) -> float:
        transfer = costs.Transfer("shard", kind, devices, 0, 1)
        return costs._seconds(transfer, Sizes(shard=devices), endless)

    within, between = costs.HOP_WITHIN, costs.HOP_BETWEEN
    assert seconds("all_gather", 8) == pytest.approx(7 * within)
    assert seconds("all_gather", 64) == pytest.approx(56 * within + 8 * between)
    assert seconds("all_reduce", 8) == pytest.approx(2 * 7 * within)
    assert seconds("all_reduce", 4096) == pytest.approx(2 * (9 * between + 7 * within))
    assert seconds("send", 8) == within and seconds("send", 16) == between
    few, many = (cost(model, Sizes(shard=n), Work(n), endless).seconds for n in (8, 64))
    assert many > few


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_peak_and_is_faster_within_a_host(name):
    device = DEVICES[name]
    assert device.peak_flops == GPU_PEAKS[name]
    assert device.between < device.within
    assert 70 < device.memory / 2**30 < 200


def test_a_model_of_any_size_is_calculated_from_its_shapes():
    model = without_memory(tiny_config(n_embd=8192, n_head=64, n_layer=80, vocab_size=32_000))
    found = cost(model, Sizes(shard=64, tensor=8), Work(sequences=64, recompute=True), H100)
    assert 0 < found.utilisation < PRODUCT_SHARE
    assert math.isfinite(found.bytes_sent) and all(n > 0 for n in found.memory.values())
