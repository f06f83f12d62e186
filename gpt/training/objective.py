"""What training makes small: a loss of the model on a batch, summed over what the batch holds."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gpt.batches import MicroBatch
from gpt.model import GPT
from gpt.training.cross_entropy import summed_cross_entropy, token_cross_entropy


class Objective(Protocol):
    """What training makes small: a loss, summed over what a batch holds."""

    def count(self, batch: MicroBatch) -> int:
        """What the sum over a global batch is divided by."""
        ...

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """Of a batch on the model's device; ()."""
        ...

    def take_figures(self) -> dict[str, Tensor]:
        """Other sums, by name, over all batches since the last call; () each."""
        ...


class NextToken:
    """The negative log-likelihood of supervised tokens: pretraining and most fine-tuning."""

    def count(self, batch: MicroBatch) -> int:
        """Supervised tokens."""
        return batch.supervised_tokens

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """In nats; ()."""
        return summed_loss(model, batch)

    def take_figures(self) -> dict[str, Tensor]:
        """None."""
        return {}


def summed_loss(model: GPT, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood summed over a batch's supervised targets, in nats; ()."""
    x = model.hidden(batch.inputs, None, batch.segments, batch.prompts).flatten(0, 1)
    return summed_cross_entropy(x, model.output_weight, batch.targets.flatten(),
                                model.config.logit_softcap, model.output_bias,
                                fused=x.is_cuda and model.training and model.is_compiled)


def token_losses(model: GPT, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where unsupervised; (B, T)."""
    x = model.hidden(batch.inputs, None, batch.segments, batch.prompts).flatten(0, 1)
    losses = token_cross_entropy(x, model.output_weight, batch.targets.flatten(),
                                 model.config.logit_softcap, model.output_bias)
    return losses.view_as(batch.targets)
