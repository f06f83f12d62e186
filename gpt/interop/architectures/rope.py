"""How config.json says rotations.

`rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as every version
reads it; one for all layers, or one for each kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures.rows import Fields
from gpt.interop.options import Options

ORIGINAL = "original_max_position_embeddings"
_LOCAL = 10_000.0  # of layers that slide, where Gemma 3 does not say it


@dataclass(frozen=True)
class Rope:
    """Base, share of a head that turns, and stretching.

    base: where config.json has none. partial: likewise; None: heads turn whole. local: whether
    layers that slide have a base of their own, or are only left unstretched; None: neither.
    """

    base: float = 10_000.0
    base_name: str = "rope_theta"
    partial: float | None = None
    partial_name: str = "partial_rotary_factor"
    local: str | None = None

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields. Raises UserError for kinds of rotation that are not known here."""
        rope, sliding = _sections(options)
        base = options.number(self.base_name, self.base)
        share = options.number(self.partial_name, self.partial)
        if rope is None:
            rope = Options({}, options.where)
        base = rope.number("rope_theta", base)
        share = rope.number("partial_rotary_factor", share)
        if share not in (None, 1) and (self.partial is None or not 0 < share <= 1):
            raise UserError(f"{rope.where}: partial_rotary_factor={share} is not supported; this "
                            f"toolkit computes with {'1' if self.partial is None else '0 to 1'}")
        head_dim: int = fields["head_dim"]
        found = {"rope_base": base, "rope_dim": int(head_dim * (share or 1)),
                 **_read_scaling(rope, options, fields)}
        return found | self._read_local(options, sliding, found, fields)

    def _read_local(self, options: Options, sliding: Options | None, found: Fields, fields: Fields
                    ) -> Fields:
        if self.local is None:
            if sliding is not None:
                raise UserError(f"{sliding.where} is not supported for this model_type")
            return {}
        base = found["rope_base"]
        if self.local == "own":
            base = options.number("rope_local_base_freq", _LOCAL)
        if sliding is not None:
            if sliding.take("rope_type", "default") != "default":
                raise UserError(f"{sliding.where}: only layers that read everything can be "
                                "stretched")
            base = sliding.number("rope_theta", base)
        apart = base != found["rope_base"] or "rope_scaling" in found
        return {"local_rope_base": base} if apart and fields.get("window") is not None else {}

    def write(self, config: ModelConfig) -> Fields:
        """The options, as every version of transformers reads them; for OLMo 3, from 5 on."""
        if self.local == "same":
            sliding = {"rope_type": "default", "rope_theta": config.local_rope_base
                       or config.rope_base}
            return {"rope_parameters": {
                "sliding_attention": sliding, "full_attention": {
                    "rope_type": "default", "rope_theta": config.rope_base,
                    **(_write_scaling(config) if config.rope_scaling is not None else {})}}}
        options: Fields = {self.base_name: config.rope_base}
        if self.partial is not None:
            share = config.rope_dim / config.head_dim
            if int(config.head_dim * share) < config.rope_dim:  # which is how it is read
                share = math.nextafter(share, 1)
            options[self.partial_name] = share
        if self.local == "own":
            options["rope_local_base_freq"] = config.local_rope_base or config.rope_base
        if config.rope_scaling is not None:
            options["rope_scaling"] = _write_scaling(config)
        return options


@dataclass(frozen=True)
class LongContext:
    """What Phi 3 says of its context outside of rope_scaling."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """Nothing: longrope asks for it."""
        options.take(ORIGINAL, None)
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """The options: the whole context, also of a model that reads what it first was for."""
        scaling = config.rope_scaling
        if scaling is None or scaling.kind != "longrope":
            return {}
        if scaling.short_factor == scaling.long_factor:
            return {ORIGINAL: scaling.original_block_size}
        return {ORIGINAL: scaling.original_block_size,
                "max_position_embeddings": max(config.block_size, scaling.longest)}


def _sections(options: Options) -> tuple[Options | None, Options | None]:
    """What is said of all layers, or of those that read everything; and of those that slide."""
    before, now = options.section("rope_scaling"), options.section("rope_parameters")
    if before is not None and now is not None:
        raise UserError(f"{options.where}: rope_scaling and rope_parameters are both given; one "
                        "of them must go")
    rope = before or now
    if rope is not None and ("full_attention" in rope or "sliding_attention" in rope):
        sliding = rope.section("sliding_attention")
        return rope.section("full_attention"), sliding
    return rope, None


def _read_scaling(rope: Options, options: Options, fields: Fields) -> Fields:
    kind = rope.take("rope_type", rope.take("type", "default"))
    if not isinstance(kind, str) or kind not in _READ:
        raise UserError(f"{rope.where}: rope_type={kind!r} is not supported; this toolkit "
                        f"computes with {', '.join(map(repr, _READ))}")
    found = _READ[kind](rope, options, fields)
    if left := rope.left_over():
        raise UserError(f"{rope.where}: {', '.join(left)} is not supported with rope_type={kind!r}")
    return found


def _read_none(rope: Options, options: Options, fields: Fields) -> Fields:
    rope.take(ORIGINAL, None)
    return {}


def _read_dynamic(rope: Options, options: Options, fields: Fields) -> Fields:
    """It changes rotations beyond max_position_embeddings alone, which no text here exceeds."""
    rope.number("factor", None)
    return _read_none(rope, options, fields)


def _read_linear(rope: Options, options: Options, fields: Fields) -> Fields:
    rope.take(ORIGINAL, None)
    return {"rope_scaling": {"kind": "linear", "factor": rope.number("factor")}}


def _read_llama3(rope: Options, options: Options, fields: Fields) -> Fields:
    return {"rope_scaling": {
        "kind": "llama3", "factor": rope.number("factor"),
        "low_freq_factor": rope.number("low_freq_factor"),
        "high_freq_factor": rope.number("high_freq_factor"),
        "original_block_size": rope.count(ORIGINAL)}}


def _read_yarn(rope: Options, options: Options, fields: Fields) -> Fields:
    """Source of what is absent: transformers' modeling_rope_utils."""
    rope.require("truncate", True, default=True)
    original = rope.count(ORIGINAL, fields["block_size"])
    factor = rope.number("factor", fields["block_size"] / original)
    sharper = rope.number("attention_factor", None)
    scales = [rope.number(name, None) for name in ("mscale", "mscale_all_dim")]
    if sharper is None and all(scales):
        above, below = (0.1 * scale * math.log(max(1.0, factor)) + 1.0 for scale in scales)
        sharper = above / below
    return {"rope_scaling": {
        "kind": "yarn", "factor": factor, "original_block_size": original,
        "beta_fast": rope.number("beta_fast", 32.0), "beta_slow": rope.number("beta_slow", 1.0),
        "attention_factor": sharper}}


def _read_longrope(rope: Options, options: Options, fields: Fields) -> Fields:
    """Texts that the model was first trained for are read as it then read them, by short_factor;
    transformers changes to long_factor in mid-text, which no cache survives."""
    longest = fields["block_size"]
    original = rope.count(ORIGINAL, options.count(ORIGINAL, longest))
    short, long = rope.take("short_factor"), rope.take("long_factor")
    return {"block_size": longest if short == long else min(longest, original), "rope_scaling": {
        "kind": "longrope", "original_block_size": original,
        "factor": rope.number("factor", max(1.0, longest / original)),
        "attention_factor": rope.number("attention_factor", None),
        "short_factor": short, "long_factor": long}}


_READ: dict[str, Callable[[Options, Options, Fields], Fields]] = {
    "default": _read_none, "dynamic": _read_dynamic, "linear": _read_linear,
    "llama3": _read_llama3, "yarn": _read_yarn, "longrope": _read_longrope, "su": _read_longrope}
_NAMES = {"factor": "factor", "low_freq_factor": "low_freq_factor",
          "high_freq_factor": "high_freq_factor", "beta_fast": "beta_fast",
          "beta_slow": "beta_slow", "original_block_size": ORIGINAL,
          "attention_factor": "attention_factor", "short_factor": "short_factor",
          "long_factor": "long_factor"}


def _write_scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    assert scaling is not None
    values = {_NAMES[name]: value for name, value in scaling.model_dump().items()
              if name in scaling.meant and value is not None}
    return {"rope_type": scaling.kind, **values}
