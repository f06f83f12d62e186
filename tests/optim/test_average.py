"""A running average of the weights: what it is, where it stands, and that a resume keeps it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt.configuration import OptimConfig
from gpt.errors import Stopped
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.optim import Rates, WeightAverage
from gpt.runs import checkpoint
from gpt.training.evaluate import evaluate
from tests.tiny import tiny_config, tiny_gpt
from tests.tiny_runs import finish, flat, optimizer_of, trainer_of, weights_of

DECAY = 0.75


def cpu() -> Machine:
    machine = Machine(torch.device("cpu"), torch.float32)
    machine.peak_flops = 1e12  # not measured
    return machine


def others(model: GPT, state: dict) -> Tensor:
    return flat([state[p]["other_weights"] for p in model.parameters()])


def history(steps: int = 5) -> tuple[GPT, dict, WeightAverage, list[Tensor]]:
    """A model that moved at random, its average, and the weights after each step."""
    model, state = tiny_gpt(n_layer=1), optimizer_of(tiny_gpt()).state
    average, past = WeightAverage(model, state, DECAY), []
    for step in range(steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        average.update()
        past.append(weights_of(model))
    return model, state, average, past


def test_the_average_is_the_sum_of_all_steps_each_counting_less_the_older_it_is():
    model, state, _, past = history()
    shares = [(1 - DECAY) * DECAY**age for age in range(len(past))][::-1]
    shares[0] = DECAY ** (len(past) - 1)  # the first step stands for all before it
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weights.double() for share, weights in zip(shares, past, strict=True))
    # Each step rounds a weight of at most 10 once or twice.
    torch.testing.assert_close(others(model, state).double(), expected, rtol=0,
                               atol=len(past) * 10 * 2**-23)
    assert torch.equal(weights_of(model), past[-1])  # what is trained stays


def test_the_average_stands_in_the_model_meanwhile_and_the_weights_after():
    model, state, average, past = history()
    mean = others(model, state)
    with average.in_model():
        assert torch.equal(weights_of(model), mean)
        assert torch.equal(others(model, state), past[-1])
    assert torch.equal(weights_of(model), past[-1]) and torch.equal(others(model, state), mean)
    with pytest.raises(Stopped), average.in_model():
        raise Stopped
    assert torch.equal(weights_of(model), past[-1]) and torch.equal(others(model, state), mean)


def test_before_the_first_step_the_weights_are_their_own_average():
    model, state = tiny_gpt(), optimizer_of(tiny_gpt()).state
    before = weights_of(model)
    with WeightAverage(model, state, DECAY).in_model():
        assert torch.equal(weights_of(model), before)
    assert torch.equal(weights_of(model), before)


def test_an_average_that_was_saved_in_the_models_place_is_taken_out_again():
    model, state, average, past = history()
    mean = others(model, state)
    with average.in_model():
        resumed = WeightAverage(model, state, DECAY)  # as if read from a checkpoint
        assert torch.equal(weights_of(model), past[-1])
        assert torch.equal(others(model, state), mean)
        resumed._swap()


SAVING = {"checkpoint": {"every_steps": 2, "keep": 9}, "eval": {"every_steps": 2}, "steps": 5}


def tensors_of(path, name: str = "model") -> dict[str, Tensor]:
    return load_file(path / f"{name}.safetensors")


def sampler(model: GPT):
    """What a sample shows of the weights that it was drawn from."""
    return lambda prompt: repr(float(weights_of(model).double().sum()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_average_is_evaluated_sampled_and_saved_while_training_goes_on_without_it(
        name, tmp_path):
    plain = trainer_of(tmp_path / "plain", cpu(), name=name, sample=sampler,
                       log={"samples_every_steps": 2}, **SAVING)
    averaged = trainer_of(tmp_path / "averaged", cpu(), ema_decay=DECAY, name=name,
                          sample=sampler, log={"samples_every_steps": 2}, **SAVING)
    lines, other = finish(plain), finish(averaged)
    train = [[line for line in run if line["event"] == "train"] for run in (lines, other)]
    assert train[0] == train[1]
    assert torch.equal(weights_of(plain.model), weights_of(averaged.model))

    paths = [checkpoint.steps_in(run.folder / "checkpoints") for run in (plain, averaged)]
    assert list(paths[0]) == list(paths[1]) == [5, 4, 2]
    mean, losses, shown = None, {}, {}
    for step in range(1, 6):  # each step's weights, from a run of that length
        short = trainer_of(tmp_path / f"to-{step}", cpu(), name=name,
                           **{**SAVING, "steps": step})
        finish(short)
        weights = {k: v.double() for k, v in short.model.state_dict().items()}
        mean = weights if mean is None else {
            k: DECAY * mean[k] + (1 - DECAY) * weights[k] for k in mean}
        if step in paths[1]:
            saved = tensors_of(paths[1][step])
            for k, tensor in saved.items():
                torch.testing.assert_close(tensor.double(), mean[k], rtol=2**-21, atol=2**-21)
                trained = tensors_of(paths[1][step], "optimizer")[f"{k}/other_weights"]
                assert torch.equal(trained, tensors_of(paths[0][step])[k])
            shown[step] = sum(float(saved[k].double().sum()) for k in saved)
            model = checkpoint.load_model(paths[1][step])
            losses[step] = evaluate(model, plain.validation(), plain._byte_lengths, cpu()).loss
    assert {line["step"]: line["val_loss"] for line in other if line["event"] == "eval"} == losses
    samples = map(json.loads, (tmp_path / "averaged/samples.jsonl").read_text().splitlines())
    assert {s["step"]: float(s["text"]) for s in samples} == pytest.approx(shown, rel=1e-12)
    assert losses[5] != lines[-2]["val_loss"]


def test_without_an_average_nothing_is_kept_for_one(tmp_path):
    finish(trainer_of(tmp_path, cpu(), **SAVING))
    for path in checkpoint.steps_in(tmp_path / "checkpoints").values():
        assert not [name for name in tensors_of(path, "optimizer") if "other_weights" in name]
    assert Rates.of(OptimConfig(), tiny_config(), 100).ema_decay is None


@pytest.mark.parametrize("settings", [{}, {"name": "muon"}, {"model": {"tie_embeddings": True}}],
                         ids=str)
def test_a_run_that_was_cut_in_two_ends_in_the_same_bits(settings, tmp_path):
    settings = {"eval": {"every_steps": 3}, "ema_decay": DECAY, **settings}
    whole = trainer_of(tmp_path / "whole", cpu(), steps=6, **settings)
    expected = finish(whole)
    finish(trainer_of(tmp_path / "cut", cpu(), steps=3, **settings))
    rest = trainer_of(tmp_path / "cut", cpu(), steps=6, **settings)
    found = finish(rest)
    assert [line for line in found if line["event"] != "save"] == [
        line for line in expected if line["event"] != "save"]
    assert torch.equal(weights_of(rest.model), weights_of(whole.model))
    for name in ("model", "optimizer"):
        ours, theirs = (tensors_of(tmp_path / run / "checkpoints/step-00000006", name)
                        for run in ("cut", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_switching_the_average_off_and_on_again_takes_no_old_weights_back(tmp_path):
    """Three steps with an average, three without, one with: the last must start from step six.

    A run's folder refuses such a change; run.resume=PATH does not.
    """
    settings = {"eval": {"every_steps": None}, "optim": {"weight_decay": 0.0}}
    finish(trainer_of(tmp_path, cpu(), steps=3, ema_decay=DECAY, **settings))
    without = trainer_of(tmp_path, cpu(), steps=6, **settings)
    finish(without)
    again = trainer_of(tmp_path, cpu(), steps=7, ema_decay=DECAY, **settings)
    assert again.state.step == 6
    assert torch.equal(weights_of(again.model), weights_of(without.model))
