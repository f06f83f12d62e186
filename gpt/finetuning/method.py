"""Which of a model's weights learn: all, adapters, or all but some."""

from __future__ import annotations

import fnmatch

import torch
from torch import Tensor

from gpt.configuration import AdapterConfig, FinetuneConfig
from gpt.errors import UserError
from gpt.model import GPT
from gpt.model.lora import adapt

UNTRAINED = 0.01  # of the median length of rows
# Peak learning rates times n_embd, by method.
RATES = {"full": 0.1, "lora": 0.5, "dora": 0.5}
SHARE_FOR_PREFERENCES = 0.1


def learning_rate(method: str, n_embd: int, preferences: bool) -> float:
    """The peak rate that suits a model's width; lower than in pretraining, whose weights it keeps.
    """
    return RATES[method] / n_embd * (SHARE_FOR_PREFERENCES if preferences else 1.0)


def choose_what_learns(model: GPT, config: FinetuneConfig, stop: int) -> GPT:
    """Add the adapters that finetune.method asks for; freeze what finetune.freeze names.

    stop: the token that ends answers. Raises UserError if it never would, if nothing is left to
    learn, or if a pattern or target has no weight.
    """
    section = config.finetune
    if section.method != "full":
        torch.manual_seed(config.run.seed)
        adapt(model, AdapterConfig(method=section.method, **config.lora.model_dump()))
    names = dict(model.named_parameters())
    for pattern in section.freeze:
        frozen = fnmatch.filter(names, pattern)
        if not frozen:
            raise UserError(f"finetune.freeze: no weight is called {pattern}; there are "
                            f"{', '.join(list(names)[:4])}, …")
        for name in frozen:
            names[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in names.values()):
        raise UserError("finetune.freeze leaves nothing to learn; name fewer weights")
    if not model.output_weight.requires_grad:
        _refuse_untrained(model.output_weight, stop)
    return model


def _refuse_untrained(output_weight: Tensor, stop: int) -> None:
    """Control tokens that a base model never saw have rows of zeros, or all the same row."""
    row, lengths = output_weight[stop], output_weight.norm(dim=1)
    alike = int((output_weight == row).all(dim=1).sum())
    if alike > 1 or lengths[stop] < UNTRAINED * lengths.median():
        raise UserError("the base model never learned the token that ends answers (its row of the "
                        "output layer is empty, or the same as another's), and with this "
                        "finetune.method and finetune.freeze the output layer does not learn; use "
                        "finetune.method=full, or a finetune.chat format that stops at end-of-text")
