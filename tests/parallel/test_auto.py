"""Which layout suits a model and the devices there are."""

from __future__ import annotations

import dataclasses

import pytest

from gpt.errors import UserError
from gpt.parallel.auto import FILLED, REPLICATED, Needs, choose, reason
from gpt.parallel.cost import memory_by_kind
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import AXES, Sizes
from gpt.parallel.traffic import Work
from tests.tiny import tiny_config

# States of 1,000 bytes; 40 for a sequence, 20 beside a whole copy, 10 beside shards of it.
NEEDS = Needs(parameters=62, state=1000, working=40, whole=20, gathered=10, sequences=64, heads=8,
              tokens=1024)
ENOUGH = round(1000 / REPLICATED)  # bytes of a device that holds a copy comfortably


def chosen(memory: int, devices: int = 16, per_host: int = 8, needs: Needs = NEEDS,
           **fixed: int | None) -> Sizes:
    return choose(fixed, devices, per_host, memory, needs)


def test_what_fits_comfortably_is_replicated():
    assert chosen(ENOUGH) == Sizes(replicate=16)
    assert chosen(ENOUGH - 1) == Sizes(replicate=2, shard=8)
    assert chosen(ENOUGH, devices=1) == Sizes()


def test_activations_count_too():
    hungry = dataclasses.replace(NEEDS, working=round(FILLED * ENOUGH) - 1000 - 20)
    assert chosen(ENOUGH, needs=hungry) == Sizes(replicate=16)
    hungrier = dataclasses.replace(hungry, working=hungry.working + 1)
    assert chosen(ENOUGH, needs=hungrier) == Sizes(replicate=2, shard=8)


def test_shards_stay_within_a_host_if_they_fit_there():
    least = 1000 / 8 + 40 + 10
    assert chosen(round(least / FILLED) + 1) == Sizes(replicate=2, shard=8)
    assert chosen(round(least / FILLED) - 1) == Sizes(shard=16)
    assert chosen(round(least / FILLED) - 1, devices=24, per_host=8) == Sizes(shard=24)


def test_tensor_comes_on_top_only_where_shards_over_all_do_not_fit():
    least = 1000 / 16 + 40 + 10
    assert chosen(round(least / FILLED) + 1) == Sizes(shard=16)
    assert chosen(round(least / FILLED) - 1) == Sizes(shard=8, tensor=2)


def test_tensor_takes_the_devices_that_sequences_leave_over():
    few = dataclasses.replace(NEEDS, sequences=4)
    assert chosen(ENOUGH, needs=few) == Sizes(replicate=4, tensor=4)
    assert chosen(ENOUGH, needs=dataclasses.replace(few, sequences=16)) == Sizes(replicate=16)
    assert chosen(ENOUGH, needs=dataclasses.replace(few, sequences=15)) == Sizes(replicate=8,
                                                                                 tensor=2)


def test_tensor_divides_the_heads_and_stays_within_a_host():
    one = dataclasses.replace(NEEDS, sequences=1)
    assert chosen(ENOUGH, needs=one) == Sizes(tensor=8, context=2)
    assert chosen(ENOUGH, needs=dataclasses.replace(one, heads=12)) == Sizes(tensor=4, context=4)
    assert chosen(ENOUGH, per_host=2, needs=one) == Sizes(tensor=2, context=8)


def test_context_is_taken_only_where_nothing_else_fits_and_divides_a_sequence():
    long = dataclasses.replace(NEEDS, working=4000, heads=1)
    assert chosen(4000, needs=long) == Sizes(replicate=8, context=2)
    assert chosen(ENOUGH, 3, needs=dataclasses.replace(NEEDS, sequences=1, heads=1)) == Sizes(
        replicate=3)  # 3 does not divide 1,024: two devices read nothing


def test_where_nothing_fits_the_least_is_taken():
    best = chosen(1)
    assert best == min((Sizes(16), Sizes(2, 8), Sizes(1, 16), Sizes(1, 2, tensor=8),
                        Sizes(context=16), best), key=NEEDS.bytes_each)
    assert best.pipeline == 1 and best.world_size == 16


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("memory", [1, 300, ENOUGH])
@pytest.mark.parametrize("devices", [4, 16, 24])
def test_what_is_fixed_stays(axis, memory, devices):
    for size in (1, 2, 4):
        sizes = chosen(memory, devices, **{axis: size})
        assert getattr(sizes, axis) == size
        assert sizes.world_size == devices


def test_what_is_fixed_decides_the_rest():
    assert chosen(ENOUGH, shard=4) == Sizes(replicate=4, shard=4)
    assert chosen(ENOUGH, replicate=4) == Sizes(replicate=4, shard=4)
    assert chosen(ENOUGH, tensor=2, pipeline=2) == Sizes(replicate=4, tensor=2, pipeline=2)
    assert chosen(ENOUGH, replicate=1, shard=1, needs=dataclasses.replace(NEEDS, heads=16),
                  per_host=16) == Sizes(tensor=16)
    assert chosen(300, tensor=2) == Sizes(replicate=2, shard=4, tensor=2)  # eight in a host
    every = {"replicate": 2, "shard": 2, "context": 2, "tensor": 2, "pipeline": 1}
    assert chosen(ENOUGH, **every) == Sizes(**every)


@pytest.mark.parametrize("fixed", [
    {"shard": 3}, {"tensor": 5}, dict.fromkeys(AXES, 1),
    {"replicate": 2, "shard": 2, "context": 1, "tensor": 1},  # the pipeline's is 1, or fixed
    {"replicate": 1, "shard": 1, "context": 1}], ids=str)  # and 16 do not divide 8 heads
def test_what_cannot_be_is_refused_by_name(fixed):
    with pytest.raises(UserError, match=r"parallel\..* processes: change a size"):
        chosen(ENOUGH, **fixed)


def test_one_device_more_than_a_host_is_no_reason_to_give_up():
    assert chosen(300, devices=9) == Sizes(shard=9)
    assert chosen(ENOUGH, devices=9) == Sizes(replicate=9)


@pytest.mark.parametrize(("memory", "line"), [
    (ENOUGH << 30, "62M parameters need 1,000.0 GiB, about 1,060.0 GiB a device with one sequence "
                   "each: replicated on 16"),
    (300 << 30, "62M parameters need 1,000.0 GiB, about 175.0 GiB a device with one sequence each: "
                "sharded over 8, replicated on 2"),
    (1 << 30, "62M parameters need 1,000.0 GiB, about 68.8 GiB a device with one sequence each: "
              "sharded over 2, matrices in parts: 8; a device has 1.0 GiB: memory may run out")])
def test_the_reason_is_a_line_for_people(memory, line):
    needs = Needs(62_000_000, 1000 << 30, 40 << 30, 20 << 30, 10 << 30, 64, 8, 1)
    assert reason(chosen(memory, needs=needs), memory, needs) == line
    assert reason(Sizes(), memory, dataclasses.replace(needs, parameters=1_560_000_000)).startswith(
        "1.56B parameters need 1,000.0 GiB, about 1,060.0 GiB a device with one sequence each: on "
        "one device")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(shard=2), Sizes(replicate=2, shard=4)], ids=str)
def test_needs_are_the_calculators_figures(optimizer, sizes):
    """Divided by the parts, where the calculator rounds up each weight's rows."""
    model = without_memory(tiny_config(vocab_size=64, block_size=32))
    work = Work(sequences=8, optimizer=optimizer, micro_batch=4)
    needs = Needs.of(model, work)
    exact = sum(memory_by_kind(model, sizes, dataclasses.replace(work, micro_batch=1)).values())
    assert needs.bytes_each(sizes) == exact
    assert needs.parameters == sum(p.numel() for p in model.parameters())
