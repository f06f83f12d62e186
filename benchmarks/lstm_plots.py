"""The five pictures of benchmarks/lstm.py, drawn from its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.files import make_folder

NAMES = {"transformer": "Transformer", "lstm": "LSTM"}
MUON = "Transformer,\nby Muon"
COLOURS = {"transformer": "#1f5fa8", "lstm": "#c8540a", "muon": "#1f5fa8"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6, "axes.titlesize": 9,
         "lines.linewidth": 1.6, "lines.markersize": 4, "axes.titlelocation": "left"}
INCHES, DOTS_PER_INCH, COLOURS_KEPT = (6.8, 3.2), 150, 96
Axes = Any  # matplotlib's, which is imported when it is needed
Part = dict[str, Any]


def draw_all(found: dict[str, Any], folder: Path) -> list[Path]:
    """A PNG of each part. found: benchmarks/results/lstm.json. Raises UserError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("drawing needs matplotlib: pip install 'gpt-toolkit[report]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot
    make_folder(folder)
    paths = []
    for name, (panels, draw) in PICTURES.items():
        with pyplot.rc_context(STYLE):
            figure, axes = pyplot.subplots(1, panels, figsize=INCHES, layout="constrained",
                                           squeeze=False)
            draw(found["parts"][name], *axes[0])
            paths.append(save(figure, folder / f"{name}.png"))
            pyplot.close(figure)
    return paths


def save(figure: Any, path: Path) -> Path:
    """As a PNG of a few colours, which makes it a third as large."""
    from PIL import Image  # with which matplotlib writes pictures
    whole = BytesIO()
    figure.savefig(whole, dpi=DOTS_PER_INCH)
    few = Image.open(whole).convert("RGB").quantize(COLOURS_KEPT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


def loss(part: Part, by_time: Axes, by_step: Axes) -> None:
    """A line for each seed; rings: trained for as many steps as the slower kind took."""
    for arm, curves in part["curves"].items():
        for curve in curves:
            for axes, across in ((by_time, "seconds"), (by_step, "step")):
                axes.plot([look[across] for look in curve], [look["value"] for look in curve],
                          color=COLOURS[arm], alpha=0.8, linestyle="--" if arm == "muon" else "-")
        median = statistics.median(curve[-1]["value"] for curve in curves)
        label(by_time, f"{NAMES.get(arm, MUON)} {median:.2f}", COLOURS[arm],
              max(curve[-1]["seconds"] for curve in curves), median)
    for kind, losses in part["at_equal_steps"].items():
        by_step.plot(part["equal_steps"], losses, "o", mfc="white", color=COLOURS[kind],
                     markersize=6)
    by_time.set(xlabel="seconds of training", ylabel="validation loss (nats per character)",
                title="by time")
    by_step.set(xlabel="steps", title="by steps; rings: equally many")
    losses = [look["value"] for curves in part["curves"].values() for curve in curves
              for look in curve]
    for axes in (by_time, by_step):
        axes.set_ylim(min(losses) - 0.1, min(losses) + 1.5)
    spread_labels(by_time)


def context(part: Part, axes: Axes) -> None:
    """Full lines: all cores; dashed: one."""
    records = part["records"]
    most = max(one["threads"] for one in records)
    for kind, threads in sorted({(one["kind"], one["threads"]) for one in records}):
        own = [one for one in records if (one["kind"], one["threads"]) == (kind, threads)]
        speeds = [one["tokens_per_second"] for one in own]
        line(axes, [one["context"] for one in own], speeds, COLOURS[kind],
             f"{NAMES[kind]}, {threads} core{'s' * (threads > 1)}",
             linestyle="-" if threads == most else "--")
    axes.set_xscale("log", base=2)
    contexts = sorted({one["context"] for one in records})
    axes.set_xticks(contexts, [f"{length:,}" for length in contexts])
    axes.set(xlabel=f"characters of a row ({part['tokens_of_a_step']:,} in every step)",
             ylabel="training speed (characters per second)")
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    spread_labels(axes)


def gradients(part: Part, axes: Axes) -> None:
    """Over the norm at distance 0; the band goes from the least to the most of the seeds."""
    for kind, curves in part["norms"].items():
        shares = [[curve[distance] / curve[0] for curve in curves]
                  for distance in range(len(curves[0]))]
        line(axes, range(len(shares)), shares, COLOURS[kind], NAMES[kind], marker="")
    axes.set_yscale("log")
    axes.set(xlabel="characters between the embedding and the loss",
             ylabel="norm of the gradient\n(that at distance 0 = 1)")
    spread_labels(axes)


def recall(part: Part, *panels: Axes) -> None:
    """A panel for each number of pairs."""
    for axes, pairs in zip(panels, sorted({one["pairs"] for one in part["records"]}), strict=True):
        for kind in NAMES:
            own = [one for one in part["records"] if (one["kind"], one["pairs"]) == (kind, pairs)]
            rates = [[100 * share for share in one["accuracy"]] for one in own]
            wide = kind == "transformer"  # so that it is seen behind the other
            line(axes, [one["distance"] for one in own], rates, COLOURS[kind], NAMES[kind],
                 linewidth=3 if wide else 1.3, markersize=7 if wide else 3.5)
        guesses = {"chance": part["chance"]} | ({} if pairs == 1 else {
            f"a guess among the {pairs} values": 1 / pairs})
        for name, share in guesses.items():
            axes.axhline(100 * share, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(name, (0, 100 * share), (2, 2), color="grey", fontsize=8, xycoords=(
                "axes fraction", "data"), textcoords="offset points")
        distances = sorted({one["distance"] for one in part["records"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(distances, [str(distance) for distance in distances])
        axes.set(ylim=(0, 118), yticks=range(0, 101, 20), xlabel="symbols of filler in between",
                 title=f"{pairs} pair{'s' * (pairs > 1)} to remember, trained for "
                       f"{part['seconds'][str(pairs)]:.0f} s")
        spread_labels(axes)
    panels[0].set_ylabel("right answers (%)")


def decoding(part: Part, memory: Axes, duration: Axes) -> None:
    """Bytes on the left, milliseconds on the right."""
    names = NAMES | {"engine": "Transformer,\nengine in C"}
    for arm in sorted({one["arm"] for one in part["records"]}):
        own = [one for one in part["records"] if one["arm"] == arm]
        lengths = [one["length"] for one in own]
        colour = COLOURS["lstm" if arm == "lstm" else "transformer"]
        if arm != "engine":
            line(memory, lengths, [[one["bytes"] / 1024] for one in own], colour, names[arm])
        line(duration, lengths, [[1e3 * each for each in one["seconds_per_token"]] for one in own],
             colour, names[arm], linestyle="--" if arm == "engine" else "-")
    for axes in (memory, duration):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_xlabel("tokens of the text so far")
    memory.set(yscale="log", ylabel="state of a text (KiB)", title="memory")
    memory.yaxis.set_major_formatter("{x:,.0f}")
    duration.set(ylabel="milliseconds per token", title="time")
    duration.set_ylim(0)
    spread_labels(memory)
    spread_labels(duration)


def line(axes: Axes, x: Iterable[float], values: list[list[float]], colour: str, name: str,
         marker: str = "o", **look: Any) -> None:
    """Medians as a line, a band from least to most, and the name at its end."""
    x, medians = list(x), [statistics.median(each) for each in values]
    axes.plot(x, medians, marker=marker, color=colour, **look)
    axes.fill_between(x, [min(each) for each in values], [max(each) for each in values],
                      color=colour, alpha=0.18, linewidth=0)
    label(axes, name, colour, x[-1], medians[-1])


def label(axes: Axes, text: str, colour: str, x: float, y: float) -> None:
    """A name beside the end of a line."""
    axes.annotate(text, (x, y), (5, 0), textcoords="offset points", color=colour, va="center",
                  annotation_clip=False, gid="end of a line")


def spread_labels(axes: Axes) -> None:
    """Move names at the ends of lines apart where they would lie upon each other."""
    names = sorted((text for text in axes.texts if text.get_gid() == "end of a line"),
                   key=lambda text: text.xy[1])
    height = axes.transData.transform
    lowest = -float("inf")
    for text in names:
        own = height((text.xy[0], text.xy[1]))[1] * 72 / axes.figure.dpi
        room = 12 * (1 + text.get_text().count("\n"))
        shifted = max(own, lowest + room)
        text.set_position((5, shifted - own))
        lowest = shifted


PICTURES: dict[str, tuple[int, Callable[..., None]]] = {
    "loss": (2, loss), "context": (1, context), "gradients": (1, gradients), "recall": (2, recall),
    "decoding": (2, decoding)}
