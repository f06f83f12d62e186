"""Which models are planned with, and how a run of a given length trains them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpt.configuration import PretrainConfig, validate
from gpt.optim import MUON_TOKENS_PER_WIDTH

TOKENS_PER_STEP = 2.0  # times the root of all tokens, as train.batch_size=auto has it
WARMUP_FRACTION, WARMUP_STEPS = 0.05, (10, 500)
EVALUATED = 2**17  # tokens of the validation split
BLOCK_SIZE = 256
LONG_STEPS = 5000  # from which on it is also looked at, and saved, on the way


class Size(NamedTuple):
    """Depth and width of a model."""

    n_layer: int
    n_embd: int

    @property
    def n_head(self) -> int:
        """Heads of 32 in narrow models, and of 64."""
        return self.n_embd // (32 if self.n_embd < 256 else 64)

    def __str__(self) -> str:
        return f"{self.n_layer} layers of width {self.n_embd}"


SIZES = [Size(*size) for size in (
    (2, 64), (3, 96), (4, 128), (5, 192), (6, 256), (7, 320), (8, 384), (9, 448), (10, 512),
    (11, 640), (12, 768), (14, 896), (16, 1024), (20, 1280), (24, 1536), (32, 2048), (32, 2560),
    (32, 4096), (48, 5120), (64, 8192))]


def configuration(dataset: str, size: Size, tokens: float, given: dict[str, Any]) -> PretrainConfig:
    """A run that reads about so many tokens: batch and warm-up follow from them.

    given: values of a configuration, by section, which win. Raises UserError as train.py does.
    """
    model = {"block_size": BLOCK_SIZE, "tie_embeddings": True} | given.get("model", {})
    if not model.keys() & {"preset", "depth"}:
        model = {"n_layer": size.n_layer, "n_embd": size.n_embd, "n_head": size.n_head} | model
    train = dict(given.get("train", {}))
    if "batch_size" not in train:
        train["batch_size"] = sequences_per_step(size, tokens, model["block_size"])
    steps = max(1, round(tokens / (train["batch_size"] * model["block_size"])))
    least, most = WARMUP_STEPS
    optim = {"warmup_steps": round(min(max(WARMUP_FRACTION * steps, least), most))}
    often = steps // 10 if steps >= LONG_STEPS else None
    sections = {
        "data": given.get("data", {}) | {"dataset": dataset}, "model": model,
        "train": train | {"steps": steps},
        "optim": optim | given.get("optim", {}),
        "eval": {"every_steps": often, "max_tokens": EVALUATED} | given.get("eval", {}),
        "checkpoint": {"every_steps": often} | given.get("checkpoint", {})}
    return validate(PretrainConfig, given | sections, {})


def sequences_per_step(size: Size, tokens: float, block_size: int) -> int:
    """As train.batch_size=auto chooses them, and enough for Muon; but hardly rounded, since runs
    of any length are to differ by that alone."""
    enough = math.ceil(MUON_TOKENS_PER_WIDTH * size.n_embd / block_size)
    wanted = max(1.0, TOKENS_PER_STEP * math.sqrt(tokens) / block_size)
    unit = 2 ** max(0, math.floor(math.log2(wanted)) - 3)
    return max(enough, unit * round(wanted / unit))
