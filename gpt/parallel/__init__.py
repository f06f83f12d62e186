"""Training on many devices: how a model lies on them, and what they tell each other."""

from gpt.parallel.choice import choose_layout
from gpt.parallel.layout import Layout, Loss, alone
from gpt.parallel.sizes import Sizes

__all__ = ["Layout", "Loss", "Sizes", "alone", "auto", "choose_layout", "cost", "share", "sizes",
           "traffic"]
