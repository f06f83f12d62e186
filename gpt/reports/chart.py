"""Charts as data: what a page draws, pictures for papers draw, and --json prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gpt.runs.history import Array

POINTS = 1000  # of a line: more than a screen shows
DIGITS = 6  # of a number in a page


@dataclass
class Series:
    """One line of a chart, or its points or bars.

    x: places along each axis that the chart can be drawn against, (n,) each. y: (n,). low, high:
    what a band around it spans. colour: which one of the page's. dashes: of which kind, 0: none.
    faint: behind the others.
    """

    label: str
    x: Mapping[str, Array]
    y: Array
    low: Array | None = None
    high: Array | None = None
    kind: Literal["line", "points", "bars"] = "line"
    colour: int = 0
    dashes: int = 0
    faint: bool = False


@dataclass
class Chart:
    """Lines over the same axes. note: what it shows.

    log: may be drawn on a logarithmic scale. begins_log: and is so at first. log_x: places along
    the axes are on one, too.
    """

    title: str
    unit: str
    series: list[Series] = field(default_factory=list)
    note: str = ""
    log: bool = True
    begins_log: bool = False
    log_x: bool = False

    def as_json(self) -> dict[str, Any]:
        """All its numbers, for other programs."""
        return {"title": self.title, "unit": self.unit, "note": self.note, "log": self.log,
                "begins_log": self.begins_log, "log_x": self.log_x, "series": [
            {"label": one.label, "kind": one.kind, "colour": one.colour, "dashes": one.dashes,
             "faint": one.faint,
             "x": {axis: plain(values) for axis, values in one.x.items()}, "y": plain(one.y),
             "low": plain(one.low), "high": plain(one.high)} for one in self.series]}


class Thinned:
    """Columns of a long run in a few stretches of as many steps each."""

    def __init__(self, columns: Mapping[str, Array], most: int = POINTS):
        rows = len(next(iter(columns.values()), ()))
        self._starts = np.linspace(0, rows, min(rows, most), endpoint=False).astype(np.int64)
        self.whole = rows <= most

    def mean(self, column: Array) -> Array:
        """Of each stretch; NaN where no step of it has a figure."""
        known = np.isfinite(column)
        count = self._reduced(np.add, known.astype(np.int64))
        sums = self._reduced(np.add, np.where(known, column, 0).astype(np.float64))
        return np.divide(sums, count, out=np.full(len(sums), np.nan), where=count > 0)

    def low(self, column: Array) -> Array:
        """The least of each stretch."""
        return self._reduced(np.fmin, column)

    def high(self, column: Array) -> Array:
        """The largest of each stretch."""
        return self._reduced(np.fmax, column)

    def ends(self, column: Array) -> Array:
        """Of each stretch what its last step has."""
        if not len(column):
            return column
        return column[np.append(self._starts[1:], len(column)) - 1]

    def _reduced(self, way: np.ufunc, column: Array) -> Array:
        return way.reduceat(column, self._starts) if len(column) else column


def plain(values: Array | None) -> list[float | int | None] | None:
    """Numbers as JSON has them, to so many digits; None for what is not finite."""
    if values is None:
        return None
    return [_plain(value) for value in np.asarray(values).tolist()]


def _plain(value: float | int) -> float | int | None:
    if isinstance(value, int):
        return value
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 10**DIGITS else short


def spread_evenly(items: Sequence[Any], most: int) -> list[Any]:
    """So many of a sequence, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
