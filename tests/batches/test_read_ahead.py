"""Reading ahead changes when a batch is read, and nothing else."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from gpt.batches import Batches, Order, ReadAhead, Shuffled, Windows
from gpt.batches.read_ahead import AHEAD
from tests.tiny import counting_text

WORKERS = [0, 1, 2, 4]
PATIENCE = 60  # seconds before a test that hangs is given up


def readers() -> int:
    """How many threads read ahead; others of the process come and go."""
    return sum(thread.name.startswith("reader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", WORKERS)
def test_the_batches_are_those_that_the_loop_would_have_read(workers):
    batches = Batches(Shuffled(Windows(counting_text(500), 8), 1), Order(6, 4))
    with ReadAhead(batches.step, workers) as ahead:
        for step in range(12):
            for part, expected in zip(ahead.step(step), batches.step(step), strict=True):
                assert torch.equal(part.inputs, expected.inputs)
                assert torch.equal(part.targets, expected.targets)


@pytest.mark.parametrize("workers", WORKERS)
def test_any_step_may_be_asked_for_at_any_time(workers):
    with ReadAhead(lambda step: step * step, workers) as ahead:
        for step in (5, 6, 7, 3, 4, 4, 0, 100, 101, 7):
            assert ahead.step(step) == step * step


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_steps_that_finish_out_of_order_are_returned_in_order(workers):
    later = threading.Event()

    def read(step: int) -> int:
        if step == 0 and workers > 1:
            assert later.wait(PATIENCE)  # step 1 is done before step 0
        if step == 1:
            later.set()
        return step

    with ReadAhead(read, workers) as ahead:
        assert [ahead.step(step) for step in range(6)] == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_is_read_ahead_than_the_workers_may(workers):
    seen: list[int] = []
    with ReadAhead(lambda step: seen.append(step), workers) as ahead:
        ahead.step(10)
        ahead.step(11)
    assert max(seen) <= 11 + AHEAD * workers
    assert sorted(seen) == list(range(10, 10 + len(seen)))  # none twice, none skipped


def test_the_next_step_is_read_while_the_current_one_is_computed():
    read_one = threading.Event()

    def read(step: int) -> None:
        if step == 1:
            read_one.set()

    with ReadAhead(read, 1) as ahead:
        ahead.step(0)
        assert read_one.wait(PATIENCE)
    read_one.clear()
    with ReadAhead(read, 0) as alone:
        alone.step(0)
        assert not read_one.is_set()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_is_raised_at_its_own_step_and_the_threads_end(workers):
    def read(step: int) -> int:
        if step == 3:
            raise OSError("a shard went away")
        return step

    before = readers()
    with pytest.raises(OSError, match="a shard went away"), ReadAhead(read, workers) as ahead:
        assert [ahead.step(step) for step in range(3)] == [0, 1, 2]
        ahead.step(3)
    assert readers() == before


def test_threads_end_with_the_loop_however_it_ends():
    before = readers()
    with pytest.raises(KeyboardInterrupt), ReadAhead(np.arange, 4) as ahead:
        ahead.step(2)
        assert readers() > before
        raise KeyboardInterrupt
    assert readers() == before
