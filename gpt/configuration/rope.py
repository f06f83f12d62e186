"""Longer contexts for models whose positions are rotations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpt.configuration.section import Section

MAX_FACTORS = 2**13  # pairs of a head

# The kinds that a field means something to; the others have it at its default.
_KINDS = {"low_freq_factor": ("llama3",), "high_freq_factor": ("llama3",),
          "original_block_size": ("llama3", "yarn", "longrope"),
          "beta_fast": ("yarn",), "beta_slow": ("yarn",),
          "attention_factor": ("yarn", "longrope"),
          "short_factor": ("longrope",), "long_factor": ("longrope",)}
Factors = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1,
                                                               max_length=MAX_FACTORS)]


class RopeScaling(Section):
    """How RoPE is stretched: pairs of a head that turn slowly are slowed down further.

    linear: all alike (Chen et al. 2023, arXiv:2306.15595). llama3: slow ones, a mixture, fast ones
    (Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.1; Meta's published code). yarn: the
    same over a ramp of pairs, and scores are sharpened (Peng et al. 2023, arXiv:2309.00071).
    longrope: each pair by its own factor (Ding et al. 2024, arXiv:2402.13753).
    """

    kind: Literal["llama3", "linear", "yarn", "longrope"] = Field(
        "llama3", description="how frequencies are stretched")
    factor: Annotated[float, Field(ge=1)] = Field(
        8.0, description="how far the context is stretched: what slow rotations are divided by; "
                         "longrope has its own factors for that")
    low_freq_factor: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of llama3; slow: fewer than this many turns in original_block_size "
                         "tokens")
    high_freq_factor: Annotated[float, Field(gt=0)] = Field(
        4.0, description="of llama3; fast: more than this many turns; between the two, a mixture")
    beta_fast: Annotated[float, Field(gt=0)] = Field(
        32.0, description="of yarn; pairs that turn more often in original_block_size tokens stay")
    beta_slow: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of yarn; pairs that turn less often are divided by factor")
    original_block_size: Annotated[int, Field(ge=1, le=2**24)] = Field(
        8192, description="block_size before the extension, in tokens; not of linear")
    attention_factor: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of yarn and longrope; multiplies what is rotated; null: what their "
                          "papers say of factor and original_block_size")
    short_factor: Factors | None = Field(
        None, description="of longrope; what each pair's frequency is divided by while block_size "
                          "is no more than original_block_size")
    long_factor: Factors | None = Field(
        None, description="of longrope; the same where block_size is more")

    @property
    def meant(self) -> set[str]:
        """The fields that mean something to its kind."""
        return {name for name in type(self).model_fields if name != "kind"
                and self.kind in _KINDS.get(name, (self.kind,))}

    @property
    def longest(self) -> int:
        """How many tokens the stretched context has."""
        return round(self.original_block_size * self.factor)

    def factors(self, block_size: int) -> list[float]:
        """Those of longrope by which a model reads texts of up to `block_size` tokens."""
        factors = (self.long_factor if block_size > self.original_block_size
                   else self.short_factor)
        assert factors is not None
        return factors

    @model_validator(mode="after")
    def _fields_are_of_the_kind(self) -> RopeScaling:
        for name, kinds in _KINDS.items():
            default = type(self).model_fields[name].default
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(f"{name} is for kind={' or '.join(kinds)}, not {self.kind}")
        return self

    @model_validator(mode="after")
    def _slow_is_slower_than_fast(self) -> RopeScaling:
        for slow, fast in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, slow) >= getattr(self, fast):
                raise ValueError(f"{slow} ({getattr(self, slow)}) must be less than {fast} "
                                 f"({getattr(self, fast)})")
        return self

    def refuse_other_heads(self, rope_dim: int) -> None:
        """Raise ValueError unless there are as many factors as pairs that turn."""
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is not None and len(factors) != rope_dim // 2:
                raise ValueError(f"rope_scaling.{name} has {len(factors)} numbers for "
                                 f"{rope_dim // 2} pairs (rope_dim / 2)")

    @model_validator(mode="after")
    def _longrope_has_its_factors(self) -> RopeScaling:
        if self.kind == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ValueError("kind=longrope needs short_factor and long_factor")
        if self.kind == "longrope" and self.original_block_size == 1:
            raise ValueError("kind=longrope needs an original_block_size of 2 or more")
        return self
