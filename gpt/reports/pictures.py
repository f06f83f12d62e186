"""Charts as pictures for papers, by matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gpt.errors import UserError
from gpt.reports.chart import Chart, Series

INCHES, DOTS_PER_INCH = (6.0, 3.6), 200


def write_pictures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """A PNG of each chart, over its first axis. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--png draws with matplotlib: pip install 'gpt-toolkit[report]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        figure, axes = pyplot.subplots(figsize=INCHES, layout="constrained")
        for series in chart.series:
            _draw(axes, series)
        axes.set(title=chart.title, ylabel=chart.unit, xlabel=next(iter(chart.series[0].x)),
                 xscale="log" if chart.log_x else "linear",
                 yscale="log" if chart.begins_log else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        name = re.sub(r"\W+", "-", chart.title.lower()).strip("-")
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DOTS_PER_INCH)
        pyplot.close(figure)
    return paths


def _draw(axes: object, series: Series) -> None:
    x, colour = next(iter(series.x.values())), f"C{series.colour}"
    look = {"color": colour, "label": series.label, "alpha": 0.3 if series.faint else 1.0}
    if series.kind == "points":
        axes.plot(x, series.y, "o", **look)  # type: ignore[attr-defined]
    elif series.kind == "bars":
        widths = 0.9 * (x[1:] - x[:-1])
        axes.bar(x[:-1], series.y[:-1], widths, **look)  # type: ignore[attr-defined]
    else:
        axes.plot(x, series.y, linewidth=0.8 if series.faint else 1.6, **look)  # type: ignore[attr-defined]
    if series.low is not None and series.high is not None:
        axes.fill_between(x, series.low, series.high, color=colour, alpha=0.2, linewidth=0)  # type: ignore[attr-defined]
