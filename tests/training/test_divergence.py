"""When a loss is called a spike."""

from __future__ import annotations

import math
import random

import pytest

from gpt.configuration import TrainConfig
from gpt.training.divergence import FEWEST, FLOOR, Divergence, robust_z_score

NORMAL = [3 + 0.1 * random.Random(i).gauss(0, 1) for i in range(64)]


def test_the_score_is_in_standard_deviations_and_no_outlier_changes_it_much():
    draw = random.Random(1)
    others = [3 + draw.gauss(0, 0.1) for _ in range(1001)]
    assert robust_z_score(3.5, others) == pytest.approx(5, rel=0.15)
    spoiled = [*others, *[1000.0] * 50]
    assert robust_z_score(3.5, spoiled) == pytest.approx(5, rel=0.25)


def test_too_few_losses_say_nothing_and_hardly_scattering_ones_little():
    assert robust_z_score(100.0, [3.0] * (FEWEST - 1)) == 0
    assert robust_z_score(100.0, [3.0] * FEWEST) == 97 / FLOOR
    assert robust_z_score(1.0, NORMAL) < 0


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1), (math.inf, 1), (2, math.nan),
                                            (2, math.inf), (math.nan, math.inf)])
def test_what_is_not_finite_is_trouble_from_the_first_step(loss, norm):
    trouble = Divergence(TrainConfig(on_nonfinite="rollback"), []).trouble(loss, norm)
    assert trouble.then == "rollback"
    assert trouble.said == f"the loss is {loss} and the gradient norm {norm}"


@pytest.mark.parametrize("then", ["warn", "stop", "skip", "rollback"])
def test_a_spike_is_told_and_remembered_only_if_its_step_is_taken(then):
    divergence = Divergence(TrainConfig(on_spike=then), NORMAL)
    assert divergence.trouble(3.5, 1.0) is None and divergence.losses[-1] == 3.5
    trouble = divergence.trouble(5.5, 1.0)
    assert trouble.then == then
    assert trouble.said.startswith("the loss is 5.5000, ")
    assert (divergence.losses[-1] == 5.5) == (then == "warn")


def test_how_far_a_spike_is_can_be_set():
    assert Divergence(TrainConfig(spike_z_score=3.0), NORMAL).trouble(3.5, 1.0) is not None
    assert Divergence(TrainConfig(spike_z_score=1e9), NORMAL).trouble(100.0, 1.0) is None


def test_only_steps_that_may_be_left_out_are_judged_before_the_weights_follow():
    assert not Divergence(TrainConfig(), []).judges_first
    assert not Divergence(TrainConfig(on_nonfinite="rollback", on_spike="stop"), []).judges_first
    assert Divergence(TrainConfig(on_nonfinite="skip"), []).judges_first
    assert Divergence(TrainConfig(on_spike="skip"), []).judges_first
