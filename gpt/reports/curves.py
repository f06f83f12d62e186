"""A run's figures as charts: loss, learning rates, gradients, speed, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt.reports import differences
from gpt.reports.chart import POINTS, Chart, Series, Thinned, spread_evenly
from gpt.reports.facts import bytes_per_token
from gpt.runs.history import Array, History, number, running_mean

ALL_POINTS = 6 * POINTS  # of one figure in a page, over all runs
FEWEST_POINTS = 100
GIB = 2**30
PLAIN = (("Throughput", "tokens per second", "tokens_per_second", "tokens/s", 1.0),
         ("Utilisation", "% of the hardware's peak", "mfu", "of peak", 100.0),
         ("Memory", "GiB at most", "peak_memory_bytes", "peak", 1 / GIB),
         ("Waiting for data", "milliseconds per step", "data_seconds", "waited", 1000.0))


class RunCurves:
    """One run in all charts: its figures in as many points as fit, and its colour."""

    def __init__(self, run: History, colour: int, most: int, alone: bool):
        self.run, self.colour, self._alone = run, colour, alone
        self._thinned = Thinned(run.steps, most)
        self._axes = {"steps": run.steps.get("step"), "tokens": run.steps.get("tokens"),
                      "FLOPs": run.flops if len(run.flops) else None,
                      "hours": hours(run.steps.get("elapsed_seconds"))}

    @property
    def axes(self) -> list[str]:
        """What its figures can be drawn against."""
        return [name for name, values in self._axes.items() if values is not None]

    def label(self, what: str) -> str:
        """A line's name: with the run's, where there are several."""
        return what if self._alone else f"{self.run.name} {what}"

    def smooth(self, name: str, axes: Sequence[str], what: str, scale: float = 1.0
               ) -> list[Series]:
        """A noisy figure: as it is, faintly, with what it spans; and its running mean."""
        if name not in self.run.steps:
            return []
        column = self.run.steps[name] * scale
        mean = self._thinned.mean(column)
        raw = Series(self.label(f"{what}, each step"), self._x(axes), mean, colour=self.colour,
                     faint=True)
        if not self._thinned.whole:
            raw.label = self.label(f"{what}, mean of steps")
            raw.low, raw.high = self._thinned.low(column), self._thinned.high(column)
        return [raw, Series(self.label(f"{what}, running mean"), self._x(axes),
                            running_mean(mean), colour=self.colour)]

    def lines(self, names: dict[str, str], axes: Sequence[str], scale: float = 1.0
              ) -> list[Series]:
        """Several figures by name, each with what it is called."""
        there = {name: what for name, what in names.items() if name in self.run.steps}
        return [Series(self.label(what), self._x(axes),
                       self._thinned.mean(self.run.steps[name]) * scale,
                       colour=place if self._alone else self.colour,
                       dashes=0 if self._alone else place)
                for place, (name, what) in enumerate(there.items())]

    def groups(self, name: str) -> dict[str, str]:
        """The figures of each group of weights, by what the group is called."""
        return {each: each.removeprefix(f"{name}_") for each in self.run.steps
                if each.startswith(f"{name}_")}

    def evaluated(self, name: str, axes: Sequence[str], what: str) -> list[Series]:
        """A figure of the evaluations, or of the CORE metric's."""
        lines = spread_evenly([
            line for line in (*self.run.evaluations, *self.run.cores)
            if number(line.get(name)) is not None and number(line.get("step")) is not None], POINTS)
        if not lines:
            return []
        at = np.array([float(line["step"]) for line in lines])
        steps = self.run.steps.get("step", np.empty(0))
        x = {}
        for axis in axes:
            values = self._axes[axis]
            assert values is not None
            x[axis] = at if axis == "steps" else np.interp(at, np.append(0, steps),
                                                           np.append(0, values))
        return [Series(self.label(what), x, np.array([float(line[name]) for line in lines]),
                       kind="points", colour=self.colour)]

    def _x(self, axes: Sequence[str]) -> dict[str, Array]:
        return {axis: self._thinned.ends(values) for axis in axes
                if (values := self._axes[axis]) is not None}


def hours(seconds: Array | None) -> Array | None:
    """Of seconds."""
    return None if seconds is None else seconds / 3600


def charts(runs: Sequence[History]) -> list[Chart]:
    """All that was logged of some runs, one colour each."""
    most = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // max(1, len(runs))))
    drawn = [RunCurves(run, place, most, len(runs) == 1) for place, run in enumerate(runs)
             if "step" in run.steps]
    if not drawn:
        return []
    axes = [axis for axis in drawn[0].axes if all(axis in one.axes for one in drawn)]
    found = [_loss(drawn, axes), _bits(drawn, axes), *_measures(drawn, axes), Chart(
        "CORE", "mean of the tasks' centred accuracies", [
            line for one in drawn for line in one.evaluated("core", axes, "CORE")], log=False)]
    found += [
        Chart("Learning rate", "by group of weights", [line for one in drawn for line in one.lines(
            one.groups("lr") or {"lr": "all"}, axes)]),
        Chart("Gradient norm", "before clipping", [line for one in drawn for line in one.lines(
            {"grad_norm": "all"} | one.groups("grad_norm"), axes)])]
    found += [Chart(title, unit, [line for one in drawn
                                  for line in one.lines({name: what}, axes, scale)])
              for title, unit, name, what, scale in PLAIN]
    return [chart for chart in found if chart.series]


def _loss(drawn: Sequence[RunCurves], axes: Sequence[str]) -> Chart:
    return Chart("Loss", "nats per token", [
        line for one in drawn for line in (*one.smooth("loss", axes, "training"),
                                           *one.evaluated("val_loss", axes, "validation"))])


def _bits(drawn: Sequence[RunCurves], axes: Sequence[str]) -> Chart:
    """Of training by the mean length of a token; of validation as it was measured."""
    series: list[Series] = []
    for one in drawn:
        if length := bytes_per_token(one.run):
            training = one.smooth("loss", axes, "training", 1 / math.log(2) / length)
            series += [training[-1]] if training else []
        series += one.evaluated("val_bits_per_byte", axes, "validation")
    return Chart("Bits per byte", "of text", series)


def _measures(drawn: Sequence[RunCurves], axes: Sequence[str]) -> list[Chart]:
    """What else evaluations measured, where they did so twice."""
    names = dict.fromkeys(name for one in drawn for name in measures(one.run))
    found = [Chart(said(name), "in validation", [
        line for one in drawn for line in one.evaluated(name, axes, said(name))], log=False)
        for name in names if name not in ("val_loss", "val_bits_per_byte")]
    return [chart for chart in found if any(len(line.y) > 1 for line in chart.series)]


def difference_chart(runs: Sequence[History]) -> Chart | None:
    """The losses of runs less that of the first, with 95 % intervals."""
    series: list[Series] = []
    for place, run in enumerate(runs[1:], start=1):
        if found := differences.along(run, runs[0]):
            tokens, mean, low, high = (np.array(column) for column in zip(
                *((at, one.mean, one.low, one.high) for at, one in found), strict=True))
            series.append(Series(f"{run.name} − {runs[0].name}", {"tokens": tokens}, mean, low,
                                 high, colour=place))
    note = "above zero is worse; the bands are 95 % intervals"
    return Chart("Difference of training loss", "nats per token", series, note,
                 log=False) if series else None


def measures(run: History) -> list[str]:
    """The figures of its evaluations, the loss first."""
    return list(dict.fromkeys(name for line in run.evaluations for name, value in line.items()
                              if name.startswith("val_") and number(value) is not None))


def said(measure: str) -> str:
    """A measure's name for people."""
    return {"val_loss": "Validation loss", "val_bits_per_byte": "Bits per byte"}.get(
        measure, measure.removeprefix("val_").replace("_", " ").capitalize())
