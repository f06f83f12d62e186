"""python -m gpt replay: take a step again that was not to be taken, and say where it went wrong."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from gpt.batches import MicroBatch
from gpt.configuration import PreferenceConfig
from gpt.errors import EXIT_FAILED, UserError
from gpt.finetuning.preferences import PairBatch, PreferenceObjective
from gpt.machine.device import DTYPES, choose_machine
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.runs.saved_model import SavedModel
from gpt.training.objective import NextToken, Objective
from gpt.training.replay import Incident, replay

KINDS = {kind.__name__: kind for kind in (MicroBatch, PairBatch)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """INCIDENT, and where to compute."""
    parser.add_argument("incident", metavar="INCIDENT",
                        help="a folder such as runs/NAME/incidents/step-00000123")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default=None,
                        help="default: that of the run, where it is here")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default=None,
                        help="of matrix products; default: that of the run")


def run(options: argparse.Namespace) -> None:
    """Say what happened, what it was, and whether it happens again; exit code 1 if not."""
    incident = Incident.read(Path(options.incident), KINDS)
    about = incident.about
    print(f"{incident.path}: step {about['step']}: {about['what']}")
    machine = choose_machine(options.device or about["device"], options.dtype or about["dtype"])
    machine = replace(machine, seed=about["seed"])
    if about["compiled"]:
        print("note: the run was compiled, and this is not: last digits may differ")
    model = _model_before(incident)
    machine.place(model)
    loss, norm = replay(incident, model, _objective(incident), machine, print)
    print(f"now: the loss is {loss} and the gradient norm {norm}")
    if not (_alike(loss, about["loss"]) and _alike(norm, about["grad_norm"])):
        print(f"then: the loss was {about['loss']} and the gradient norm {about['grad_norm']}; it "
              "does not happen again, so it was not in these weights and this data alone")
        raise SystemExit(EXIT_FAILED)


def _model_before(incident: Incident) -> GPT:
    """With the weights from before the step or, where those were gone, of the newest checkpoint."""
    path = incident.path.absolute()
    if checkpoint.damage(path):
        newest = checkpoint.newest_sound(path.parent.parent / "checkpoints")
        if newest is None:
            raise UserError(f"{incident.path} has no weights, which had changed when this was "
                            "noticed, and the run has no checkpoint; train.on_nonfinite=skip looks "
                            "at each step before the weights follow it")
        print(f"note: the weights had changed when this was noticed; these are those of {newest}")
        path = newest
    saved = SavedModel(path, is_ours=True)
    return saved.adapted_model() or saved.model()


def _objective(incident: Incident) -> Objective:
    """What was made small."""
    if not any(isinstance(part, PairBatch) for _, part in incident.batch):
        return NextToken()
    try:
        return PreferenceObjective(PreferenceConfig.model_validate(
            incident.about["config"]["preference"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{incident.path} is damaged: it does not say how preferences were "
                        "learned") from error


def _alike(now: float, then: str) -> bool:
    """To the digits that number formats of a processor share."""
    before = float(then)
    return now == before or (now != now and before != before) or (
        abs(now - before) <= 1e-3 * abs(before))
