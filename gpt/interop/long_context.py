"""How long a text a model of another tool is to read: for those that can be read in two ways."""

from __future__ import annotations

import torch

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.model import GPT


def longest(config: ModelConfig) -> int:
    """How many tokens a model can be set to read at a time."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return config.block_size
    return max(config.block_size, scaling.longest)


def with_block_size(model: GPT, block_size: int) -> GPT:
    """The same weights for texts of at most `block_size` tokens.

    Beyond the original_block_size of longrope, texts of every length are read by its long factors.
    Raises UserError for more than the model was made for, and for positions that are stored.
    """
    config, most = model.config, longest(model.config)
    if config.position == "learned" and block_size != config.block_size:
        raise UserError(f"--block-size {block_size}: a model with a table of {config.block_size} "
                        "positions has that block_size; leave it out")
    if not 1 <= block_size <= most:
        raise UserError(f"--block-size {block_size}: this model reads 1 to {most:,} tokens")
    with torch.device("meta"):
        resized = GPT(config.model_copy(update={"block_size": block_size}))
    resized.load_state_dict(model.state_dict(), assign=True)
    return resized.train(model.training)
