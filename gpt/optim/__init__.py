"""How weights learn: the learning rate over a run, groups of weights, their rules, an average."""

from gpt.optim.average import WeightAverage
from gpt.optim.build import Optimizer, Rates, adamw_lr, build_optimizer
from gpt.optim.group import weights_by_kind
from gpt.optim.muon import Muon
from gpt.optim.schedule import lr_factor

__all__ = ["Muon", "Optimizer", "Rates", "WeightAverage", "adamw_lr", "build_optimizer",
           "lr_factor", "weights_by_kind"]
