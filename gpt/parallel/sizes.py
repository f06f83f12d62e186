"""How many devices a model lies on, along each axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gpt.errors import UserError

AXES = ("pipeline", "replicate", "shard", "context", "tensor")  # outermost first


@dataclass(frozen=True)
class Sizes:
    """Devices along each axis; their product is the number of processes.

    replicate: copies of the weights, each for other sequences. shard: parts that they are kept in,
    each part's device with sequences of its own. context: parts of a sequence. tensor: parts of
    every matrix. pipeline: stages, with some of the layers each.
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    pipeline: int = 1

    @property
    def world_size(self) -> int:
        """Devices in all."""
        return math.prod(asdict(self).values())

    @property
    def data(self) -> int:
        """Groups of devices that read different sequences."""
        return self.replicate * self.shard

    def inside(self, axis: str) -> int:
        """How far neighbours on an axis are apart, in ranks."""
        return math.prod(getattr(self, inner) for inner in AXES[AXES.index(axis) + 1:])

    def __str__(self) -> str:
        return " × ".join(f"{axis} {size}" for axis in AXES
                          if (size := getattr(self, axis)) > 1) or "one process"

    def check(self, world_size: int) -> Sizes:
        """Itself. Raises UserError unless it is for so many processes."""
        if self.world_size != world_size:
            raise mismatch(asdict(self), world_size)
        return self


def check_fixed(fixed: Mapping[str, int | None], world_size: int) -> None:
    """Raise UserError if what is fixed leaves no sizes for so many processes."""
    assert fixed.keys() <= set(AXES), fixed
    given = {axis: size for axis in AXES if (size := fixed.get(axis)) is not None}
    for axis, size in given.items():
        if size < 1:
            raise UserError(f"parallel.{axis}={size}: a number of devices is at least 1")
    product = math.prod(given.values())
    if world_size % product or (len(given) == len(AXES) and product != world_size):
        raise mismatch(given, world_size)


def mismatch(sizes: Mapping[str, int | None], world_size: int) -> UserError:
    """Sizes that were given, by axis, do not make the number of processes."""
    given = {axis: size for axis in AXES if (size := sizes.get(axis)) is not None}
    product = " × ".join(f"parallel.{axis}={size}" for axis, size in given.items())
    return UserError(f"{product} = {math.prod(given.values())} devices, and there are {world_size} "
                     "processes: change a size, or how many processes are started")
