"""What of a model one device holds: the fullest one, on any layout."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from gpt.configuration import ModelConfig
from gpt.model import GPT
from gpt.parallel.sizes import Sizes


def without_memory(config: ModelConfig) -> GPT:
    """A model of shapes alone, however large, for what is calculated from it."""
    with torch.device("meta"):
        return GPT(config)


@dataclass(frozen=True)
class Weight:
    """A parameter as layouts see it: rows are shared out by shard, matrices by tensor."""

    rows: int
    row: int  # elements
    is_matrix: bool
    learns: bool

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Weight:
        """From its shape."""
        rows = parameter.size(0) if parameter.dim() else 1
        return cls(rows, parameter.numel() // max(1, rows), parameter.dim() > 1,
                   parameter.requires_grad)

    def elements(self, tensor: int, shard: int = 1) -> int:
        """On a device. A device may have a row more than others, as torch.chunk shares them out."""
        whole = math.ceil(self.rows / shard) * self.row
        return math.ceil(whole / tensor) if self.is_matrix else whole


@dataclass(frozen=True)
class Share:
    """The weights of a device before they are sharded.

    block: of one layer. layers: how many it has. around: tables, last norm and output layer, where
    they are not in a layer; of a pipeline's stages, those of the first or of the last.
    """

    block: tuple[Weight, ...]
    layers: int
    around: tuple[Weight, ...]
    sizes: Sizes

    @classmethod
    def of(cls, model: GPT, sizes: Sizes) -> Share:
        """Of the device that has the most."""
        first, last = _weights([model.embedding]), _weights(
            m for name, m in model.named_children() if name in ("final_norm", "lm_head"))
        if sizes.pipeline == 1:
            around = first + last
        else:
            if model.config.tie_embeddings:  # both ends have the table
                last += _weights([model.embedding.token_embedding])
            around = max(first, last, key=lambda part: sum(weight.elements(1) for weight in part))
        return cls(_weights([model.blocks[0]]), math.ceil(model.config.n_layer / sizes.pipeline),
                   around, sizes)

    def elements(self, shard: int | None = None, learns: bool = False, matrices: bool = False
                 ) -> int:
        """Of all its weights, or those that learn, or the layers' matrices; in how many parts."""
        tensor, parts = self.sizes.tensor, shard or self.sizes.shard
        block = [w for w in self.block if w.is_matrix or not matrices]
        weights = [*self.layers * block, *(() if matrices else self.around)]
        return sum(w.elements(tensor, parts) for w in weights if w.learns or not learns)

    def gathered(self, weights: tuple[Weight, ...], learns: bool = False) -> int:
        """Elements that an all-gather of these ends with, padding included."""
        tensor, parts = self.sizes.tensor, self.sizes.shard
        return parts * sum(w.elements(tensor, parts) for w in weights if w.learns or not learns)


def _weights(modules: Iterable[nn.Module]) -> tuple[Weight, ...]:
    return tuple(Weight.of(p) for module in modules for p in module.parameters())
