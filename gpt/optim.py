"""AdamW, which weights decay, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from gpt.config import ModelConfig, OptimConfig

AUTO_LR_LIMIT = 4e-3  # narrow models learn best here; measured at widths 128 and 256


def peak_lr(optim: OptimConfig, model: ModelConfig) -> float:
    """The configured learning rate, or the one that suits the model's width: 1 / n_embd."""
    return min(AUTO_LR_LIMIT, 1 / model.n_embd) if optim.lr == "auto" else optim.lr


def build_optimizer(model: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.AdamW:
    """AdamW in one fused kernel per parameter group. Source: arXiv:1711.05101."""
    decayed, kept = split_by_decay(model)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay},
              {"params": kept, "weight_decay": 0.0}]
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(groups, lr=lr, betas=(optim.beta1, optim.beta2), eps=1e-10,
                             fused=device in ("cpu", "cuda"))


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weight matrices, everything else): norms, biases and embeddings never decay."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append(parameter)
    return decayed, kept


def lr_factor(optim: OptimConfig, step: int, progress: float) -> float:
    """The learning rate at a step, as a share of its peak.

    step: 0 for the first update. progress: the share of the run that lies behind, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    return warmup * _after_warmup(optim, min(1.0, max(0.0, progress)))


def _after_warmup(optim: OptimConfig, progress: float) -> float:
    floor = optim.min_lr_fraction
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    left = 1 - progress  # wsd
    if left >= optim.cooldown_fraction:
        return 1.0
    return floor + (1 - floor) * left / optim.cooldown_fraction
