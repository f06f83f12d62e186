"""What "auto" becomes: batch size, and whether compiling pays."""

from __future__ import annotations

import math

import pytest
import torch

from gpt.configuration import RunConfig, TrainConfig
from gpt.machine.device import Machine
from gpt.training.budget import Budget
from gpt.training.choices import (
    choose_batch_size,
    choose_micro_batch_size,
    compile_pays,
    evaluation_tokens,
)
from tests.tiny import CPU, tiny_config

SHAPE = tiny_config(block_size=64)


def batch_size(epoch_tokens: float = 1e6, flops: float = 1e6, **train: object) -> int:
    return choose_batch_size(TrainConfig(**train), SHAPE, flops, epoch_tokens, CPU)


def test_a_given_batch_size_is_kept():
    assert batch_size(batch_size=3, tokens=10**9) == 3


@pytest.mark.parametrize("tokens", [10**5, 10**6, 10**8, 10**11])
def test_tokens_per_step_are_two_roots_of_the_tokens_to_the_next_power_of_two(tokens):
    chosen = batch_size(tokens=tokens)
    assert math.log2(chosen).is_integer()
    assert 2**-0.5 <= chosen * 64 / (2 * math.sqrt(tokens)) <= 2**0.5


def test_every_budget_of_the_same_length_gives_the_same_batch_size():
    expected = batch_size(tokens=4_000_000)                      # 2 · 2,000 = 62.5 · 64
    assert expected == 64
    assert batch_size(steps=1000) == expected                    # of 4,000 tokens
    assert batch_size(epochs=2, epoch_tokens=2_000_000) == expected
    assert batch_size(epoch_tokens=4_000_000) == expected        # one epoch
    minute_of_flops = 60 * 1e11
    assert batch_size(max_minutes=2, flops=2 * minute_of_flops / 4e6) == expected
    assert batch_size(max_minutes=32, flops=2 * minute_of_flops / 4e6) == 4 * expected


def test_there_is_at_least_one_sequence_in_a_step():
    assert batch_size(tokens=10) == 1
    train = TrainConfig(tokens=1000)
    assert choose_batch_size(train, tiny_config(block_size=2**20), 1e6, 1e6, CPU) == 1


def test_an_unsettled_batch_size_is_never_used():
    with pytest.raises(AssertionError):
        _ = TrainConfig().sequences_per_step
    assert TrainConfig(batch_size=5).sequences_per_step == 5


def pays(compile: object = "auto", machine: Machine = CPU, flops: float = 0.0,
         **budget: float) -> bool:
    return compile_pays(RunConfig(compile=compile), flops, Budget(**budget), machine)


@pytest.fixture()
def cuda(monkeypatch) -> Machine:
    machine = Machine(torch.device("cuda"), torch.bfloat16)
    machine.__dict__["peak_flops"] = 1e15
    return machine


def test_compiling_is_left_to_runs_that_win_its_minute_back(cuda):
    assert not pays(seconds=599) and pays(seconds=600)
    assert not pays(flops=5.9e13, steps=5) and pays(flops=6e13, steps=5)  # at 1e11 a second
    assert not pays(machine=cuda, seconds=179) and pays(machine=cuda, seconds=180)
    assert not pays(machine=cuda, flops=7e16, steps=5)                    # at 4e14 a second
    assert pays(machine=cuda, flops=7.3e16, steps=5)


def test_a_given_choice_is_kept():
    assert pays(True, seconds=1) and not pays(False, seconds=10**6)


def test_without_a_compiler_a_cpu_does_not_compile_and_mps_never_does(monkeypatch, cuda):
    mps = Machine(torch.device("mps"), torch.float32)
    assert not pays(machine=mps, seconds=10**6)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not pays(seconds=10**6)
    assert pays(machine=cuda, seconds=10**6)


def test_evaluation_scores_more_sequences_at_once_than_a_step_has_but_respects_a_given_cut():
    train = TrainConfig(batch_size=2)
    assert choose_micro_batch_size(train, SHAPE, CPU) == 2
    assert evaluation_tokens(train, SHAPE, CPU) == 8192
    given = TrainConfig(batch_size=2, micro_batch_size=5)
    assert evaluation_tokens(given, SHAPE, CPU) == 5 * 64
    assert evaluation_tokens(train, tiny_config(block_size=2**14), CPU) == 2**14
