"""How a model lies on many devices, as a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt.configuration.section import Count, Section

# Ways in which processes hold a model that is only asked.
WAYS = ("auto", "replicate", "shard", "tensor")


class ParallelConfig(Section):
    """How many processes share what, where several train together (docs/scale.md).

    The numbers' product is the number of processes. `parallel: auto` leaves all of them open.
    """

    replicate: Count | Literal["auto"] = Field(
        "auto", description="copies of the model, each of which reads its own sequences; auto: as "
                            "many as are left, if the model fits")
    shard: Count | Literal["auto"] = Field(
        "auto", description="processes over which one copy's weights, gradients and optimizer are "
                            "spread, and which read their own sequences; auto: what the model "
                            "needs")
    context: Count = Field(
        1, description="processes that read a stretch each of the same sequences")
    tensor: Count | Literal["auto"] = Field(
        "auto", description="processes that share every matrix, heads whole; auto: 1, or what the "
                            "model needs")
    pipeline: Count = Field(
        1, description="processes that hold a stretch of the layers each")
    offload: bool = Field(
        False, description="what is sharded lies in the host's memory between uses: for GPUs")
    timeout_seconds: Annotated[float, Field(ge=5)] = Field(
        600.0, description="a process that does not answer for so long is taken for lost, and all "
                           "end")
