"""PEFT's folders of adapters: which of their matrices is what to us."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.files import read_json, sha256_of
from gpt.interop.equivalent import standard
from gpt.interop.tensors import Rule
from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear
from gpt.model.lora import adaptable_matrices
from gpt.tokenizer import digest_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Matrix:
    """One of theirs, and what it is to us.

    parts: those of ours that it holds, from the first row to the last, and how many rows each has.
    factor: what the exported base has multiplied it with (see gpt/interop/equivalent.py).
    order: which of their rows our rows are; None: the same ones.
    """

    theirs: str
    ours: str
    parts: dict[str, int]
    inputs: int
    transposed: bool
    factor: float
    order: Tensor | None = field(default=None, compare=False)

    def our_rows(self, rows: Tensor) -> Tensor:
        """Theirs in our order."""
        return rows if self.order is None else rows[self.order]

    def their_rows(self, rows: Tensor) -> Tensor:
        """Ours in their order."""
        return rows if self.order is None else rows[self.order.argsort()]

    @property
    def short_name(self) -> str:
        """What says which one of a layer it is: q_proj, or mlp.c_proj, as GPT-2 has two c_proj."""
        return ".".join(self.theirs.split(".")[-2 if self.transposed else -1:])

    def name(self, part: str, what: str) -> str:
        """A weight of our adapter."""
        return f"{self.ours}.lora.{part}.{what}"

    def learned(self, state: dict[str, Tensor]) -> list[str]:
        """Its parts that our adapter changes."""
        return [part for part in self.parts if self.name(part, "A") in state]


def matrices_of(model: GPT) -> list[Matrix]:
    """All that an adapter can change. Raises UserError if the model has no standard form."""
    architecture, written = standard(model.config)
    rule_of = {rule.ours: rule for rule in architecture.rules(written)}
    folded = model.config.residual_scale / written.residual_scale
    found = []
    for block in range(model.config.n_layer):
        for matrix, parts in adaptable_matrices(model.config).items():
            ours = f"blocks.{block}.{matrix}"
            rule, weight = rule_of[f"{ours}.weight"], model.get_parameter(f"{ours}.weight")
            scaled = matrix.endswith(("out_proj", "down_proj"))
            shares = [parts] if len(rule.theirs) == 1 else [{p: n} for p, n in parts.items()]
            found += [Matrix(name.removesuffix(".weight"), ours, share, weight.size(1),
                             rule.transposed, folded if scaled else 1.0, order)
                      for name, share, order in zip(rule.theirs, shares, _orders(rule, shares),
                                                    strict=True)]
    return found


def _orders(rule: Rule, shares: list[dict[str, int]]) -> list[Tensor | None]:
    """The order of each share's rows, which stay within it."""
    if rule.order is None:
        return [None] * len(shares)
    lengths = [sum(share.values()) for share in shares]
    return [order - order.min() for order in rule.order.split(lengths)]


def frozen_lengths(model: GPT, ours: str) -> dict[str, Tensor]:
    """The lengths of a matrix's frozen rows, by part: as magnitudes they change nothing."""
    parts = adaptable_matrices(model.config)[ours.split(".", 2)[2]]
    layer = model.get_submodule(ours)
    weight = layer.float_weight() if isinstance(layer, AdaptedLinear) else layer.weight
    assert isinstance(weight, Tensor)
    lengths = torch.linalg.vector_norm(weight.detach().float(), dim=1).cpu()
    return dict(zip(parts, lengths.split(list(parts.values())), strict=True))


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds adapters in PEFT's layout."""
    return (path / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The model that a folder's adapters change: a path, seen from here or from there, or a name.
    """
    options = read_json(folder / CONFIG)
    name = options.get("base_model_name_or_path") if isinstance(options, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / CONFIG} does not say which model its adapters change; write "
                        "that model's folder or name into base_model_name_or_path")
    beside = folder / name
    try:
        return str(beside) if beside.is_dir() and not Path(name).is_dir() else name
    except (OSError, ValueError) as error:  # longer than any path, say
        raise UserError(f"{folder / CONFIG}: base_model_name_or_path is neither a folder nor a "
                        f"name: {reprlib.repr(name)}") from error


def peft_digest(folder: Path) -> str:
    """SHA-256 over a folder's adapters and what they are."""
    return digest_of(*(sha256_of(folder / name) for name in (CONFIG, WEIGHTS)))
