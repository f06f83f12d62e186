"""A frozen matrix, and the low-rank change of it that is learned.

Shape letters: I inputs of a matrix, O the rows of one part, R rank.
Source: Hu et al. 2021 (arXiv:2106.09685); DoRA: Liu et al. 2024 (arXiv:2402.09353).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import AdapterConfig
from gpt.model.int8 import quantized

_SMALLEST = torch.finfo(torch.float32).tiny


class Update(nn.Module):
    """What the rows of one part learn, in float32 whatever the frozen weight is in.

    A: (R, I), drawn as PEFT draws it. B: (O, R), zero, so that nothing changes at first.
    magnitude: (O,), the length that DoRA gives each row; None in LoRA.
    """

    magnitude: nn.Parameter | None

    def __init__(self, weight: Tensor, config: AdapterConfig):
        super().__init__()
        rows, inputs = weight.shape
        self.scale = config.scale
        self.A = nn.Parameter(torch.empty(config.rank, inputs, device=weight.device))
        self.B = nn.Parameter(torch.zeros(rows, config.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self.lengths(weight)) if config.method == "dora" else None

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """‖w + b A‖ for each row w of the frozen (O, I) weight and b of scale · B.  (O,)

        The square is ‖w‖² + 2 b·(A w) + b A Aᵀ bᵀ: R numbers a row, where the sum itself has I.
        """
        W, A, B = weight.float(), self.A.float(), self.scale * self.B.float()
        squares = torch.linalg.vector_norm(W, dim=1).square()
        squares = squares + ((2 * (W @ A.T) + B @ (A @ A.T)) * B).sum(1)
        return squares.clamp_min(_SMALLEST).sqrt()  # a row of zeros must not become NaN

    def stretch(self, weight: Tensor) -> Tensor:
        """What DoRA multiplies each row of W + scale · B A with.  (O,)

        The length that a row has before is a constant to the gradient: section 4.3 of the paper.
        """
        assert self.magnitude is not None
        with torch.autocast(weight.device.type, enabled=False):
            return self.magnitude.float() / self.lengths(weight)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """The float32 matrix with which a plain layer does the same.  (O, I)"""
        W = weight.float() + self.scale * (self.B.float() @ self.A.float())
        return W if self.magnitude is None else self.stretch(weight).unsqueeze(1) * W


class AdaptedLinear(nn.Linear):
    """A frozen linear layer, and what some of its rows learn.

    parts: the names of all rows from the first to the last, and how many each has.
    weight_scale: where the weight is int8, what each row of it is multiplied with.
    """

    weight_scale: Tensor | None

    def __init__(self, linear: nn.Linear, parts: dict[str, int], config: AdapterConfig):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None,
                         device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_scale", None)
        self.parts, self.config, self.training = parts, config, linear.training
        self.lora = nn.ModuleDict()

    @property
    def updates(self) -> dict[str, Update]:
        """By part."""
        return cast(dict[str, Update], dict(self.lora.items()))

    def add_updates(self, chosen: set[str]) -> None:
        """Let the chosen parts learn."""
        for part, weight in self.by_part(self.float_weight(), dim=0).items():
            if part in chosen:
                self.lora[part] = Update(weight, self.config)
        self.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, all rows)"""
        shape, x = x.shape[:-1], x.flatten(0, -2)
        dropped = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        y, (low, B) = self._product(x, self.bias), self._factors(dropped)
        if self.config.method == "lora":
            return y.addmm_(low.to(y.dtype), B.T.to(y.dtype)).unflatten(0, shape)
        if dropped is not x:
            plain = self._product(dropped, None)
        else:
            plain = y if self.bias is None else y - self.bias
        stretch = self._stretch()
        if plain is y:
            learned = y.addmm_(low.to(y.dtype), B.T.to(y.dtype)) * stretch
        else:  # rows that do not learn keep their bits
            learned = y + (stretch - 1) * plain + stretch * F.linear(low, B.to(low.dtype))
        return learned.to(y.dtype).unflatten(0, shape)

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """scale · A x and B, whose product is what the parts change: (n, I) -> (n, r), (rows, r).

        All A's are one product, r numbers in all. So are all B's, beside zeros: each part reads
        what its own A has made, and a part that does not learn reads nothing.
        """
        A = torch.cat([update.A for update in self.updates.values()])
        B = torch.block_diag(*(self.updates[part].B if part in self.lora else A.new_empty(rows, 0)
                               for part, rows in self.parts.items()))
        return F.linear(x, A.to(x.dtype)) * self.config.scale, B

    def _stretch(self) -> Tensor:
        """What DoRA multiplies each row with; 1 where nothing learns.  (all rows,)"""
        weights = self.by_part(self.float_weight(), dim=0)
        return torch.cat([self.updates[part].stretch(weight) if part in self.lora
                          else weight.new_ones(len(weight)) for part, weight in weights.items()])

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.weight_scale is None:
            return F.linear(x, self.weight, bias)
        product: Tensor = _Int8Product.apply(x, self.weight, self.weight_scale, bias)
        return product

    def by_part(self, rows: Tensor, dim: int) -> dict[str, Tensor]:
        """Cut a tensor where one part ends and the next one begins."""
        pieces = rows.split(list(self.parts.values()), dim=dim)
        return dict(zip(self.parts, pieces, strict=True))

    def float_weight(self) -> Tensor:
        """The frozen matrix, (all rows, I); from int8, as a new tensor."""
        return self.weight if self.weight_scale is None else self.weight * self.weight_scale

    @torch.no_grad()
    def quantize(self) -> None:
        """Keep the frozen matrix as int8."""
        if self.weight_scale is None:
            numbers, self.weight_scale = quantized(self.weight)
            self.weight = nn.Parameter(numbers, requires_grad=False)

    def merged(self, dtype: torch.dtype) -> nn.Linear:
        """A plain layer that does the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None,
                           device="meta")
        weights = self.by_part(self.float_weight().detach(), dim=0)
        merged = [self.updates[part].merged(weight) if part in self.lora else weight.float()
                  for part, weight in weights.items()]
        linear.weight, linear.bias = nn.Parameter(torch.cat(merged).to(dtype)), self.bias
        return linear.train(self.training)


class _Int8Product(torch.autograd.Function):
    """F.linear with a frozen int8 matrix.

    Its floats are made anew for the backward pass: kept until then, they would take the memory that
    int8 saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, (weight * scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradients[0] @ (weight * scale).to(gradients[0].dtype), None, None, None
