"""How weights learn: the learning rate over a run, groups of weights, their rules, an average."""

from gpt.optim.average import WeightAverage
from gpt.optim.build import MUON_TOKENS_PER_WIDTH, Optimizer, Rates, adamw_lr, build_optimizer
from gpt.optim.group import State, local_part, weights_by_kind
from gpt.optim.muon import Muon, number_format, orthogonalised
from gpt.optim.schedule import lr_factor

__all__ = ["MUON_TOKENS_PER_WIDTH", "Muon", "Optimizer", "Rates", "State", "WeightAverage",
           "adamw_lr", "build_optimizer", "local_part", "lr_factor", "number_format",
           "orthogonalised", "weights_by_kind"]
