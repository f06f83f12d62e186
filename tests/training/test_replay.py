"""A step taken again, and where a number that is not finite arises first."""

from __future__ import annotations

import math

import pytest
import torch

from gpt.batches import MicroBatch
from gpt.errors import TrainingFailed, UserError
from gpt.runs.saved_model import SavedModel
from gpt.training.objective import NextToken, summed_loss
from gpt.training.replay import Incident, replay
from tests.tiny_runs import finish, trainer_of
from tests.training.test_loop import cpu

KINDS = {"MicroBatch": MicroBatch}
DOWN = "blocks.0.feedforward.down_proj"


def failed(folder, change, at=3, **settings):
    """The incident of a run whose model is changed before a batch; and what ended the run."""
    trainer = trainer_of(folder, cpu(), micro_batch_size=2, **settings)
    read = trainer.read

    def changing(number):
        if number == at:
            change(trainer.model)
        return read(number)

    trainer.read = changing
    with pytest.raises(TrainingFailed) as failure:
        finish(trainer)
    return Incident.read(folder / "incidents" / f"step-{at:08d}", KINDS), str(failure.value)


def again(incident, objective=None):
    """(what is said, the loss, the norm)"""
    said = []
    machine = cpu()
    machine.seed = incident.about["seed"]
    model = SavedModel(incident.path, is_ours=True).model()
    loss, norm = replay(incident, model, objective or NextToken(), machine, said.append)
    return said, loss, norm


def test_the_module_whose_output_overflows_is_named_with_the_rows_and_their_text(tmp_path):
    def overflow(model):
        with torch.no_grad():
            model.get_submodule(DOWN).weight[0] = 3e38

    incident, _ = failed(tmp_path, overflow)
    said, loss, _ = again(incident)
    assert math.isnan(loss) or math.isinf(loss)
    assert not any(line.startswith("weights:") for line in said)
    assert said[0].startswith(f"micro-batch 0, forward: the output of {DOWN} has ")
    assert " numbers that are not finite (such as " in said[0]
    rows = [line for line in said if line.startswith("  row ")]
    assert rows and "(text the text, tokens " in rows[0] and ", documents " in rows[0]


def test_weights_that_are_not_finite_are_named_before_anything_else(tmp_path):
    def spoil(model):
        with torch.no_grad():
            model.get_submodule(DOWN).weight[1, 1] = math.nan

    said, _, _ = again(failed(tmp_path, spoil)[0])
    size = said[0].split(" of ")[1].split()[0]
    assert said[0] == (f"weights: {DOWN}.weight has 1 of {size} numbers that are not finite (such "
                       "as nan) from before the step")


def test_a_gradient_that_overflows_in_the_backward_pass_alone_is_found_there(tmp_path):
    def nothing(model):
        pass

    class Rooted(NextToken):
        def summed_loss(self, model, batch):
            hidden = model.hidden(batch.inputs)
            return summed_loss(model, batch) + (hidden * 0).square().sum().sqrt()

    trainer = trainer_of(tmp_path, cpu(), micro_batch_size=2)
    trainer.objective = Rooted()
    with pytest.raises(TrainingFailed):
        finish(trainer)
    incident = Incident.read(tmp_path / "incidents" / "step-00000000", KINDS)
    said, loss, norm = again(incident, Rooted())
    assert math.isfinite(loss) and math.isnan(norm)
    assert said[0].startswith("micro-batch 0, backward: the gradient of the output of final_norm ")
    assert any(line.startswith("gradients: of embedding.token_embedding.weight, the first in the "
                               "model's order, has ") for line in said)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_spike_gives_the_same_loss_and_norm_again_dropout_too(dropout, tmp_path):
    def shift(model):
        model.final_norm.weight.data *= 100

    incident, _ = failed(tmp_path, shift, 36, steps=40, model={"dropout": dropout},
                         train={"on_spike": "stop"})
    said, loss, norm = again(incident)
    assert said == []
    assert loss == pytest.approx(float(incident.about["loss"]), rel=1e-6)
    assert norm == pytest.approx(float(incident.about["grad_norm"]), rel=1e-5)


def test_what_is_no_incident_or_is_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no incident: give a folder such as"):
        Incident.read(tmp_path, KINDS)
    incident, _ = failed(tmp_path, lambda model: model.final_norm.weight.data.fill_(math.nan))
    with pytest.raises(UserError, match="is damaged: KeyError"):
        Incident.read(incident.path, {})
    (incident.path / "rows.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged"):
        Incident.read(incident.path, KINDS)
