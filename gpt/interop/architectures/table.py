"""What an architecture is here: a table of options, and one of names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures.rows import Row
from gpt.interop.options import Options
from gpt.interop.tensors import Names, Rule, rules


@dataclass(frozen=True)
class Architecture:
    """One model_type of transformers: what its config.json says and what its tensors are called."""

    model_type: str
    class_name: str
    rows: tuple[Row, ...]
    names: Names | Callable[[ModelConfig], Names]

    def rules(self, config: ModelConfig) -> list[Rule]:
        """All tensors of a model of this architecture."""
        return rules(config, self.names if isinstance(self.names, Names) else self.names(config))

    def read(self, options: Options) -> dict[str, Any]:
        """Fields of a ModelConfig. Raises UserError for what we do not compute."""
        fields: dict[str, Any] = {"model_type": self.model_type}
        for row in self.rows:
            fields |= row.read(options, fields)
        return fields

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The options of config.json."""
        options: dict[str, Any] = {}
        for row in self.rows:
            options |= row.write(config)
        return options

    def refusals(self, config: ModelConfig) -> dict[str, Any]:
        """The fields that it cannot express: {name: value}. They are those that do not come back.
        """
        try:
            read = ModelConfig(**self.read(Options(self.write(config), self.model_type)))
        except (UserError, ValidationError):  # heads are no share of the width, or turn in part
            name = "head_dim" if config.rope_dim == config.head_dim else "rope_dim"
            return {name: getattr(config, name)}
        of_windows = "window" if read.window != config.window else "window_pattern"
        names = (of_windows if name == "windows" else name for name in differences(config, read))
        found = {name: getattr(config, name) for name in names}
        if (scaling := found.pop("rope_scaling", None)) is not None:
            found["rope_scaling.kind"] = scaling.kind
        return found


def validated(fields: dict[str, Any], where: str) -> ModelConfig:
    """A configuration of these fields. Raises UserError naming the one that is wrong."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        what = f"{name} (as this toolkit calls it): " if name else ""
        raise UserError(f"{where}: {what}{message}") from error


def differences(wanted: ModelConfig, found: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """In what two configurations say another function: {field: (wanted, found)}."""
    there = _meaning(found)
    other = {name: (value, there[name]) for name, value in _meaning(wanted).items()
             if not _same(there[name], value)}
    if "position" in other:  # which says it all
        return {name: both for name, both in other.items() if "rope" not in name}
    return other


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)  # a square root there and back
    return bool(one == other)


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """What a configuration says of the function that is computed, so that two can be compared."""
    scaling = config.rope_scaling
    stretched = None if scaling is None else scaling.model_dump(include={"kind", *scaling.meant})
    rotation = {"global": (config.rope_base, stretched), "local": (config.local_rope_base, None)}
    kinds = zip(config.rotations, config.windows, strict=True)
    turns = {window is not None: rotation[kind] for kind, window in kinds if kind is not None}
    main = turns.get(False, turns.get(True, (None, None)))
    local = turns.get(True, main)
    return config.model_dump(exclude={"model_type", "dropout", "window", "window_pattern"}) | {
        "bias": sorted(config.biases - (set() if config.norm == "layernorm" else {"norm"})),
        "windows": [window if window is not None and window < config.block_size else None
                    for window in config.windows],
        "rope_pattern": [kind is not None for kind in config.rotations],
        "rope_base": main[0], "rope_scaling": main[1],
        "local_rope_base": None if local == main else local[0],
        "rope_dim": config.rope_dim if turns else None}
