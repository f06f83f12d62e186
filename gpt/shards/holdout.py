"""Which names are held out for validation: a decision that adding other names does not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def held_out_names(names: Iterable[str], fraction: float, seed: int) -> set[str]:
    """About `fraction` of the names, each chosen by a hash of itself and the seed.

    If chance would leave a side empty, the name with the lowest (or highest) hash goes there; a
    single name is never held out.
    """
    places = {name: _place(name, seed) for name in names}
    held_out = {name for name, place in places.items() if place < fraction}
    if not held_out and len(places) > 1:
        held_out = {min(places, key=places.__getitem__)}
    if len(held_out) == len(places) and places:
        held_out.remove(max(places, key=places.__getitem__))
    return held_out


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """The same decision for one name of a corpus too large to list."""
    return _place(name, seed) < fraction


def _place(name: str, seed: int) -> float:
    """A number in [0, 1) that belongs to a name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
