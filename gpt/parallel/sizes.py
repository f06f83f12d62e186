"""How many processes there are along each axis of the mesh."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Sizes:
    """Processes along each axis, the outermost first: neighbours on a host share a tensor."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def world_size(self) -> int:
        """Of all processes."""
        return math.prod(astuple(self))

    def __str__(self) -> str:
        return " × ".join(f"{field.name} {size}" for field in fields(self)
                          if (size := getattr(self, field.name)) > 1) or "one process"
