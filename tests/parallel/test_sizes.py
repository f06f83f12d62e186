"""How many devices there are along each axis."""

from __future__ import annotations

import itertools

import pytest

from gpt.errors import UserError
from gpt.parallel.sizes import AXES, Sizes, check_fixed


def test_the_devices_are_the_product_of_all_axes():
    sizes = Sizes(replicate=2, shard=3, context=5, tensor=7, pipeline=11)
    assert sizes.world_size == 2 * 3 * 5 * 7 * 11
    assert sizes.data == 2 * 3
    assert sizes.check(2310) is sizes
    assert Sizes().world_size == 1


def test_neighbours_are_as_far_apart_as_torch_lays_out_a_mesh():
    sizes = Sizes(replicate=2, shard=3, context=5, tensor=7, pipeline=11)
    places = list(itertools.product(*(range(getattr(sizes, axis)) for axis in AXES)))
    for i, axis in enumerate(AXES):
        second = [0] * len(AXES)
        second[i] = 1
        assert sizes.inside(axis) == places.index(tuple(second))


def test_sizes_for_another_number_of_processes_are_refused_by_name():
    with pytest.raises(UserError) as refused:
        Sizes(replicate=2, shard=4).check(6)
    assert str(refused.value) == (
        "parallel.pipeline=1 × parallel.replicate=2 × parallel.shard=4 × parallel.context=1 × "
        "parallel.tensor=1 = 8 devices, and there are 6 processes: change a size, or how many "
        "processes are started")


@pytest.mark.parametrize("fixed", [{}, {"shard": 2}, {"shard": 2, "tensor": 3}, {"shard": None},
                                   dict.fromkeys(AXES, 1) | {"shard": 6}], ids=str)
def test_what_leaves_whole_numbers_is_taken(fixed):
    check_fixed(fixed, 6)


@pytest.mark.parametrize(("fixed", "message"), [
    ({"shard": 4}, "parallel.shard=4 = 4 devices, and there are 6"),
    ({"shard": 3, "tensor": 3}, "parallel.shard=3 × parallel.tensor=3 = 9 devices"),
    ({"tensor": 12}, "parallel.tensor=12 = 12 devices"),
    (dict.fromkeys(AXES, 1) | {"shard": 3}, "= 3 devices, and there are 6"),
    ({"shard": 0}, "parallel.shard=0: a number of devices is at least 1")], ids=str)
def test_what_leaves_none_is_refused_by_name(fixed, message):
    with pytest.raises(UserError, match=message):
        check_fixed(fixed, 6)
