"""Training on many devices: how a model lies on them, and what they tell each other."""

from gpt.parallel.choice import choose_layout
from gpt.parallel.layout import Layout, alone
from gpt.parallel.passes import Laid, Passes, accumulate_gradients
from gpt.parallel.sizes import Sizes
from gpt.parallel.weights import layout_of_weights

__all__ = ["Laid", "Layout", "Passes", "Sizes", "accumulate_gradients", "alone", "auto",
           "choose_layout", "cost", "layout_of_weights", "share", "sizes", "traffic", "vocabulary"]
