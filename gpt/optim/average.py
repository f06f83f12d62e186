"""A running average of the weights, which is smoother than any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpt.optim.group import local_part

OTHER = "other_weights"  # in the optimizer's state


class WeightAverage:
    """Weights averaged over steps, the newest counting most.

    It lives in the optimizer's state under "other_weights" and so in every checkpoint: the average
    while training, the trained weights while the average stands in the model.
    decay: the share of the old average that each step keeps.
    Source: Polyak and Juditsky 1992; exponential as in arXiv:1806.05594, section 4.
    """

    def __init__(self, model: nn.Module, state: dict[Any, Any], decay: float):
        self._weights: list[Tensor] = [p for p in model.parameters()
                                       if p.requires_grad and not p.is_meta]
        self._state, self._decay = state, decay
        if any(OTHER in state.get(p, {}) for p in self._weights):
            self._swap()  # a checkpoint holds the average as the model's weights

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of this step."""
        for p in self._weights:
            if OTHER not in self._state[p]:
                self._state[p][OTHER] = p.detach().clone()
        torch._foreach_lerp_([local_part(self._state[p][OTHER]) for p in self._weights],
                             [local_part(p) for p in self._weights], 1 - self._decay)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """The average stands in the model meanwhile: to evaluate, sample and save."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def reloaded(self) -> None:
        """A checkpoint was read into model and state, which has the average as the weights."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p in self._weights:
            if OTHER in self._state[p]:
                weight, other = local_part(p), local_part(self._state[p][OTHER])
                kept = weight.clone()
                weight.copy_(other)
                other.copy_(kept)

    @classmethod
    def continued(cls, model: nn.Module, state: dict[Any, Any],
                  decay: float | None) -> WeightAverage | None:
        """With the weights and the state of a checkpoint in place, or at a run's beginning.

        decay: None: nothing is averaged from here on, and what was is forgotten.
        """
        average = cls(model, state, 0.0 if decay is None else decay)
        if decay is not None:
            return average
        for weight in model.parameters():
            if weight in state:
                state[weight].pop(OTHER, None)
        return None
