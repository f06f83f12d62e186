"""Layers that differ: which of them slide, and which do not rotate."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

from gpt.configuration import MAX_DEPTH, ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures.rows import Fields
from gpt.interop.options import Options

_KINDS = {"full_attention": "F", "sliding_attention": "S"}


@dataclass(frozen=True)
class Windows:
    """A sliding window in all layers, or in those that layer_types or a pattern names.

    absent: the window where config.json has none; null is no window. pattern: which layers slide
    without layer_types; None: there is no such option, and all do. period: the name of an option
    that says which layer of so many does not slide.
    """

    absent: int | None = None
    pattern: str | None = None
    period: str | None = None

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        window = options.count("sliding_window",
                               None if "sliding_window" in options else self.absent)
        pattern = self.pattern or "S"
        if self.period is not None:
            every = options.count(self.period, len(pattern))
            pattern = "S" * (every - 1) + "F"
        if self.pattern is not None:
            n_layer = min(fields["n_layer"], MAX_DEPTH)  # more are refused later
            pattern = window_pattern(options, n_layer) or (pattern * n_layer)[:n_layer]
        if window is None or "S" not in pattern:
            return {}
        return {"window": window, "window_pattern": pattern}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        if self.pattern is None:
            return {"sliding_window": config.window}
        return {"sliding_window": config.window or config.block_size,  # they cannot do without
                **layer_types(config)}


@dataclass(frozen=True)
class SwitchedWindows:
    """The same with Qwen's switch, and the first layer that slides."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields. Raises UserError for layers that slide while the switch is off."""
        slides = options.require("use_sliding_window", True, False, default=False)
        window = options.count("sliding_window", None if "sliding_window" in options else 4096)
        n_layer = min(fields["n_layer"], MAX_DEPTH)  # more are refused later
        first = int(min(max(0, options.number("max_window_layers", 28)), n_layer))
        said = window_pattern(options, n_layer)
        pattern = said or "F" * first + "S" * (n_layer - first)
        if slides and window is not None:
            return {"window": window, "window_pattern": pattern} if "S" in pattern else {}
        if said is not None and "S" in said:
            raise UserError(f"{options.where}: layer_types names layers that slide, but "
                            "use_sliding_window is off; set one of them right")
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        slides = config.window is not None
        return {"use_sliding_window": slides, "sliding_window": config.window,
                "max_window_layers": 0 if slides else config.n_layer, **layer_types(config)}


@dataclass(frozen=True)
class Unrotated:
    """Layers without positions, as SmolLM3 has them; those alone can slide."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        n_layer = min(fields["n_layer"], MAX_DEPTH)  # more are refused later
        every = options.count("no_rope_layer_interval", 4)
        turns = options.take("no_rope_layers", [int((i + 1) % every != 0) for i in range(n_layer)])
        if not isinstance(turns, list) or len(turns) < n_layer or not set(
                map(repr, turns)) <= {"0", "1"}:
            raise UserError(f"{options.where}: no_rope_layers={reprlib.repr(turns)} must have a 0 "
                            f"or 1 for each of {n_layer} layers")
        slides = options.require("use_sliding_window", True, False, default=False)
        window = options.count("sliding_window", None)
        said = window_pattern(options, n_layer)
        pattern = said or "".join("F" if turn or not slides else "S" for turn in turns[:n_layer])
        sliding = {} if window is None or "S" not in pattern else {
            "window": window, "window_pattern": pattern}
        return {"rope_pattern": "".join("R" if turn else "N" for turn in turns[:n_layer]),
                **sliding}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        return {"no_rope_layers": [int(rotation is not None) for rotation in config.rotations],
                "use_sliding_window": config.window is not None, "sliding_window": config.window,
                **layer_types(config)}


def window_pattern(options: Options, n_layer: int) -> str | None:
    """What layer_types says, a letter a layer. Raises UserError for other kinds of layers."""
    kinds: Any = options.take("layer_types", None)
    if kinds is None:
        return None
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= _KINDS.keys():
        raise UserError(f"{options.where}: layer_types={reprlib.repr(kinds)} is not supported; "
                        f"this toolkit computes {' and '.join(_KINDS)}")
    if len(kinds) != n_layer:
        raise UserError(f"{options.where}: layer_types has {len(kinds)} entries for {n_layer} "
                        "layers")
    return "".join(_KINDS[kind] for kind in kinds)


def layer_types(config: ModelConfig) -> Fields:
    """The option that says of each layer what it reads."""
    return {"layer_types": ["full_attention" if window is None else "sliding_attention"
                            for window in config.windows]}
