"""Which layout a run has, and what is said of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gpt.configuration import RunSections
from gpt.errors import UserError
from gpt.launcher import Place
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks
from gpt.parallel import Sizes, choose_layout
from tests.parallel.processes import run_ranks
from tests.tiny import CPU, tiny_config


def choose(sections: dict[str, Any]) -> tuple[Sizes, list[str]]:
    size = dist.get_world_size() if dist.is_initialized() else 1
    here = Place(dist.get_rank(), size, dist.get_rank(), size) if size > 1 else Place()
    ranks = Ranks(dist.group.WORLD if size > 1 else None, here=here)
    machine = Machine(torch.device("cpu"), torch.float32, ranks=ranks)
    try:
        layout = choose_layout(RunSections(**sections), tiny_config(), machine)
    except UserError as error:
        return Sizes(), [str(error)]
    return layout.sizes, layout.lines


@pytest.mark.parametrize(("ranks", "batch", "waits"), [(2, 8, False), (2, 7, True), (4, 6, True)])
def test_a_step_that_processes_share_unevenly_is_told(ranks, batch, waits):
    for sizes, lines in run_ranks(ranks, choose, {"train": {"batch_size": batch}}):
        assert sizes == Sizes(replicate=ranks)
        told = [line for line in lines if "is no multiple" in line]
        assert told == [f"warning: train.batch_size={batch} is no multiple of the {ranks} processes"
                        " that read it: some wait for others in every step"] * waits


def test_the_layout_is_told_with_its_reason_and_nothing_by_one_process():
    for _, lines in run_ranks(2, choose, {"train": {"batch_size": 8}, "parallel": {"shard": 2}}):
        [line] = [line for line in lines if line.startswith("layout: ")]
        assert re.match(r"layout: shard 2; .* parameters need .* a device", line)
    assert choose_layout(RunSections(train={"batch_size": 7}), tiny_config(), CPU).lines == []


def test_a_step_with_less_than_a_sequence_for_each_process_is_refused():
    for _, [line] in run_ranks(2, choose, {"train": {"batch_size": 1},
                                           "parallel": {"replicate": 2}}):
        assert line.startswith("train.batch_size=1 is less than the 2 processes that read sequences"
                               " of their own: raise it, ")
