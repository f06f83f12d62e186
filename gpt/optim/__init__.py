"""How weights learn: the learning rate over a run, groups of weights, their rules, an average."""

from gpt.optim.average import WeightAverage
from gpt.optim.build import Optimizer, Rates, build_optimizer
from gpt.optim.schedule import lr_factor

__all__ = ["Optimizer", "Rates", "WeightAverage", "build_optimizer", "lr_factor"]
