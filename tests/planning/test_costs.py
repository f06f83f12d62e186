"""Which size is chosen, and what its run reads and takes."""

from __future__ import annotations

import pytest
import torch

from data import prepare
from gpt.errors import UserError
from gpt.machine.hardware import GPU_GIB, GPU_PEAKS
from gpt.planning import Goal, OnDataSheet, ThisMachine
from gpt.planning.costs import FEWEST_STEPS, START_SECONDS, Costs, best_size
from gpt.planning.devices import Speed, memory_of
from gpt.planning.sizes import EVALUATED, SIZES, Size, configuration, sequences_per_step
from gpt.shards import Dataset
from tests.tiny import CPU

GIB = 2**30


class Steady:
    """A device that computes 1e11 FLOP/s, and takes two milliseconds for each step of a layer.

    flops: what it is taken for.
    """

    is_measured, count, kind = True, 1, torch.device("cpu")
    memory = 64.0 * GIB

    def __init__(self, flops: float = 1e11) -> None:
        self.flops = flops
        self.asked: list[int] = []

    def speed(self, config):
        self.asked.append(config.model.n_embd)
        tokens = config.train.sequences_per_step * config.model.block_size
        flops = 6 * 12 * config.model.n_layer * config.model.n_embd**2 * tokens
        return Speed(flops / 1e11 + 0.002 * config.model.n_layer, 4.0, 3.0)

    def fitted(self, config):
        return config

    def memory_taken(self, config):
        return memory_of(config, 1, self.kind)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    (folder / "text.txt").write_text("".join(f"{i} bottles of beer\n" for i in range(3000)))
    prepare.main([str(folder / "text.txt"), "tokenizer=byte", f"out={folder / 'data'}"])
    return Dataset(folder / "data")


def loss(parameters, tokens):
    """A law with a valley: large models learn slower."""
    return 1 + (0.2 / (parameters / 1e6) + 1e6 / tokens) ** 0.3


def each(costs, goal):
    """What every size that fits would end with."""
    return {size: loss(costs.counts(size).layer_parameters,
                       costs.of(size).tokens if goal.seconds else costs.roughly(size))
            for size in SIZES[:9]}


def does_better(one, other, tokens):
    """Whether a model ends with less than another with as much arithmetic as its tokens take."""
    as_many = tokens * other.flops_per_token / one.flops_per_token
    return loss(one.layer_parameters, as_many) < loss(other.layer_parameters, tokens)


@pytest.mark.parametrize("goal", [Goal(seconds=60), Goal(seconds=600), Goal(flops=1e12),
                                  Goal(flops=1e14)])
def test_the_size_with_the_least_loss_is_found_and_few_are_measured(dataset, goal):
    device = Steady()
    found = best_size(Costs(dataset, goal, device, {}), loss)
    assert len(set(device.asked)) <= 5 and (goal.seconds or not device.asked)
    losses = each(Costs(dataset, goal, Steady(), {}), goal)
    assert losses[found] == min(losses.values())


def test_of_given_flops_no_model_that_could_hardly_take_a_step(dataset):
    costs = Costs(dataset, Goal(flops=1e14), Steady(), {})
    found = best_size(costs, lambda parameters, tokens: -parameters)
    steps = [costs.configuration(size, costs.roughly(size)).train.steps
             for size in SIZES[SIZES.index(found):][:2]]
    assert steps[0] >= FEWEST_STEPS > steps[1]


def test_of_given_tokens_the_largest_model_for_which_no_smaller_one_does_better(dataset):
    found = []
    for tokens in (1e6, 1e8, 1e10):
        goal = Goal(tokens=tokens)
        costs = Costs(dataset, goal, Steady(), {})
        found.append(best_size(costs, loss))
        place = SIZES.index(found[-1])
        here, larger = map(costs.counts, SIZES[place:place + 2])
        smaller = list(map(costs.counts, SIZES[:place]))
        assert not any(does_better(counts, here, tokens) for counts in smaller)
        assert any(does_better(counts, larger, tokens) for counts in [*smaller, here])
    assert found == sorted(set(found))


@pytest.mark.parametrize("guess", [1e9, 1e13])
def test_a_device_that_is_taken_for_another_is_measured_until_nothing_is_better(dataset, guess):
    goal = Goal(seconds=600)
    found = best_size(Costs(dataset, goal, Steady(guess), {}), loss)
    assert found == best_size(Costs(dataset, goal, Steady(), {}), loss)


def test_memory_leaves_sizes_out(dataset):
    goal, device = Goal(flops=1e16), Steady()
    roomy = best_size(Costs(dataset, goal, device, {}), loss)
    device.memory = 0.3 * memory_of(Costs(dataset, goal, device, {}).configuration(roomy, 1e8), 1,
                                    device.kind)
    tight = best_size(Costs(dataset, goal, device, {}), loss)
    assert tight < roomy
    device.memory = 1.0
    assert best_size(Costs(dataset, goal, device, {}), loss) is None


def test_time_is_spent_to_the_last_step(dataset):
    costs = Costs(dataset, Goal(seconds=300), Steady(), {})
    cost = costs.as_it_will_go(Size(4, 128))
    assert 300 - cost.speed.seconds_per_step < cost.seconds <= 300
    assert cost.tokens == cost.steps * cost.config.train.batch_size * 256
    assert cost.config.train.max_minutes == round((300 - START_SECONDS - 3) / 60, 3)
    assert cost.config.train.steps is None
    assert cost.seconds == pytest.approx(
        START_SECONDS + 4 + cost.steps * cost.speed.seconds_per_step)
    assert cost.config.run.compile == "auto" and costs.of(Size(4, 128)).config.run.compile is False


def test_what_was_timed_several_times_goes_at_the_mean(dataset):
    costs = Costs(dataset, Goal(seconds=300), Steady(), {})
    cost = costs.at(costs.as_it_will_go(Size(4, 128)), [Speed(0.1, 4.0, 1.0), Speed(0.3, 6.0, 3.0)])
    assert cost.speed == Speed(pytest.approx(0.2), 5.0, 2.0)
    assert cost.config.train.max_minutes == round((300 - START_SECONDS - 2) / 60, 3)
    assert cost.steps == int((300 - START_SECONDS - 5) / 0.2) and cost.seconds <= 300


@pytest.mark.parametrize("goal", [Goal(flops=3e12), Goal(tokens=1e6)])
def test_flops_and_tokens_are_spent_to_a_step(dataset, goal):
    cost = Costs(dataset, goal, Steady(), {}).as_it_will_go(Size(4, 128))
    spent = cost.tokens * (cost.counts.flops_per_token if goal.flops else 1)
    assert spent == pytest.approx(goal.flops or goal.tokens, rel=0.02)


def test_a_run_gets_batches_that_suit_its_length_and_what_is_given_wins():
    short, long = (configuration("data", Size(4, 128), tokens, {}) for tokens in (3e5, 3e7))
    assert short.train.batch_size * 256 == 1024 and long.train.batch_size * 256 == 44 * 256
    assert short.train.steps == 293 and short.optim.warmup_steps == 15
    assert (short.eval.every_steps, long.eval.every_steps) == (None, None)
    assert short.eval.max_tokens == EVALUATED
    assert sequences_per_step(Size(10, 512), 1e5, 256) * 256 >= 6 * 512  # enough for Muon
    given = configuration("data", Size(4, 128), 3e5, {
        "model": {"block_size": 64, "mlp": "gelu"}, "train": {"batch_size": 10},
        "eval": {"max_tokens": 7}, "optim": {"warmup_steps": 3}, "run": {"seed": 5}})
    assert (given.model.block_size, given.model.mlp, given.train.batch_size) == (64, "gelu", 10)
    assert (given.eval.max_tokens, given.optim.warmup_steps, given.run.seed) == (7, 3, 5)
    assert given.train.steps == round(3e5 / 640)
    with pytest.raises(UserError, match=r"there is no field model.depht"):
        configuration("data", Size(4, 128), 3e5, {"model": {"depht": 3}})


def test_sizes_grow():
    parameters = [12 * size.n_layer * size.n_embd**2 for size in SIZES]
    assert parameters == sorted(parameters)
    assert all(size.n_embd % size.n_head == 0 for size in SIZES)


def test_a_data_sheet_tells_speed_and_memory(dataset):
    one, eight = OnDataSheet("h100", 1, None), OnDataSheet("H100", 8, None)
    config = Costs(dataset, Goal(tokens=1e9), one, {}).configuration(Size(12, 768), 1e9)
    assert one.flops == 0.4 * GPU_PEAKS["H100"] and eight.flops == pytest.approx(7.2 * one.flops)
    assert one.memory == 80 * GIB and GPU_PEAKS.keys() == GPU_GIB.keys()
    counts = Costs(dataset, Goal(tokens=1e9), one, {}).counts(Size(12, 768))
    assert counts.parameters - counts.layer_parameters == (dataset.tokenizer.vocab_size + 1) * 768
    tokens = config.train.batch_size * config.model.block_size
    assert one.speed(config).seconds_per_step == pytest.approx(
        counts.flops_per_token * tokens / one.flops)
    assert "not measured" in str(one) and "where 8 work together" in str(eight)
    with pytest.raises(UserError, match=r"--device abacus: .*H100"):
        OnDataSheet("abacus", 1, None)


def test_elsewhere_as_much_memory_is_taken_as_there_is(dataset):
    device = OnDataSheet("l4", 1, None)
    config = Costs(dataset, Goal(tokens=1e9), device, {}).configuration(Size(16, 1024), 1e9)
    taken = []
    for gib in (0.1, 6, 12, 1000):
        device.memory = gib * GIB
        taken.append(device.memory_taken(config))
        assert device.fitted(config) is config
    assert taken[0] == memory_of(config, 1, device.kind) > 0.1 * GIB
    assert taken[0] < taken[1] <= 6 * GIB and 6 * GIB < taken[2] <= 12 * GIB
    assert taken[3] == memory_of(config, config.train.batch_size, device.kind)


def test_here_micro_batches_are_halved_until_they_fit(dataset):
    device = ThisMachine(CPU, dataset)
    config = Costs(dataset, Goal(tokens=1e8), device, {}).configuration(Size(4, 128), 1e8)
    assert config.train.micro_batch_size == "auto"
    device.memory = 0.5 * device.memory_taken(config)
    smaller = device.fitted(config)
    assert smaller.train.micro_batch_size < config.train.batch_size
    assert 0.4 * device.memory < device.memory_taken(smaller) <= device.memory
    assert smaller.model == config.model
    device.memory = 1.0
    assert device.fitted(config).train.micro_batch_size == 1


def test_a_shape_that_is_given_is_trained_whatever_was_chosen():
    for given, shape in (({"n_layer": 7}, (7, 128, 4)), ({"depth": 3}, (3, 192, 3)),
                         ({"preset": "qwen3-15m"}, (7, 256, 4))):
        config = configuration("data", Size(4, 128), 3e5, {"model": given})
        assert (config.model.n_layer, config.model.n_embd, config.model.n_head) == shape
        assert config.train.tokens is None and config.train.steps > 100
    kept = configuration("data", Size(4, 128), 3e5, {"data": {"packing": "documents"}})
    assert (kept.data.dataset, kept.data.packing) == ("data", "documents")
