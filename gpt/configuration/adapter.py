"""Low-rank adapters, as a configuration: what fine-tuning adds to frozen weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt.configuration.section import Count, Section


class LoraConfig(Section):
    """Low-rank updates of frozen matrices, for finetune.method=lora and dora."""

    rank: Count = Field(8, description="of each update")
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="updates are scaled by alpha / rank")
    rslora: bool = Field(
        False, description="by alpha / √rank instead, which suits high ranks (arXiv:2312.03732)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on what updates read, in training")
    targets: list[str] = Field(
        ["all"], min_length=1,
        description="matrices with an update: q_proj, k_proj, v_proj, out_proj, gate_proj, "
                    "up_proj, down_proj, or attention, feedforward, all")
    base: Literal["full", "int8"] = Field(
        "full", description="how frozen matrices are kept; int8: a quarter of float32's memory, "
                            "rounded")


class AdapterConfig(LoraConfig):
    """A model's adapters, as a checkpoint describes them."""

    method: Literal["lora", "dora"] = Field("lora", description="see finetune.method")

    @property
    def scale(self) -> float:
        """What an update is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
